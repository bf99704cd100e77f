package main

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"entrepot/internal/ocitest"
)

// TestErrorsNameWhatTheyAreAbout, whatever went wrong and wherever, in one message;
// with no secret beside it.
func TestErrorsNameWhatTheyAreAbout(t *testing.T) {
	image := ocitest.RandomImage(1, 1000)
	digest, blob := image.Digest.String(), image.Blobs[0].Digest.String()
	everything := ocitest.Match{Role: ocitest.Registry}
	for _, row := range []struct {
		name   string
		fault  *ocitest.Fault
		down   bool
		pairs  []string
		status int
		cause  string // in the message, too
	}{
		{name: "404", fault: &ocitest.Fault{Match: everything, Effect: ocitest.Answer(404)}, status: 404},
		{name: "401", fault: &ocitest.Fault{Match: everything, Effect: ocitest.Answer(401)}, status: 403},
		{name: "403", fault: &ocitest.Fault{Match: everything, Effect: ocitest.Answer(403)}, status: 403},
		{name: "the token service refuses", fault: &ocitest.Fault{Match: ocitest.Match{Role: ocitest.Token}, Effect: ocitest.Answer(403)}, status: 403, cause: "refuses"},
		{name: "429", fault: &ocitest.Fault{Match: everything, Effect: ocitest.AbuseLimit()}, status: 429},
		{name: "500", fault: &ocitest.Fault{Match: everything, Effect: ocitest.Answer(500)}, status: 503},
		{name: "refused", down: true, status: 503, cause: "it is tried again in"},
		{name: "timeout", fault: &ocitest.Fault{Match: everything, Effect: ocitest.Hang()}, pairs: []string{"ENTREPOT_HEADER_TIMEOUT=1s"}, status: 504, cause: "no answer"},
		{name: "offline", pairs: []string{"ENTREPOT_OFFLINE=true"}, status: 503, cause: "offline"},
		{name: "policy", pairs: []string{"ENTREPOT_POLICY_0_MATCH=docker.io/team/*", "ENTREPOT_POLICY_0_ACTION=deny"}, status: 403, cause: "policy: rule 0"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			hub := ocitest.NewHub(t, ocitest.Config{})
			hub.AddUser("robot", "hunter2")
			hub.Push("team/app", "1", image)
			if row.fault != nil {
				hub.Inject(row.fault)
			}
			p := startProgram(t, hub, append(row.pairs, "ENTREPOT_UPSTREAM_0_USERNAME=robot", "ENTREPOT_UPSTREAM_0_PASSWORD=hunter2")...)
			client := newClient(t)
			if row.down {
				hub.Close()
				for range 5 {
					get(t, client, p.registry+"/v2/team/other/manifests/1")
				}
			}
			var asked sync.WaitGroup
			for path, name := range map[string]string{
				"manifests/1":         "docker.io/team/app:1",
				"manifests/" + digest: "docker.io/team/app@" + digest,
				"blobs/" + blob:       "docker.io/team/app@" + blob,
				"tags/list":           "docker.io/team/app",
			} {
				asked.Go(func() {
					status, body, _ := get(t, client, p.registry+"/v2/team/app/"+path)
					var told struct{ Errors []struct{ Message string } }
					if err := json.Unmarshal([]byte(body), &told); err != nil || status != row.status || len(told.Errors) != 1 {
						t.Errorf("%s: %d %s, want %d and an error", path, status, body, row.status)
						return
					}
					message := told.Errors[0].Message
					if strings.Count(message, name) != 1 || !strings.Contains(message, row.cause) || message == name {
						t.Errorf("%s: %q, want %s in it once, and %q", path, message, name, row.cause)
					}
					for _, secret := range []string{"hunter2", "Bearer", "Basic", "token=", "?"} {
						if strings.Contains(body, secret) {
							t.Errorf("%s: %s in %s", path, secret, body)
						}
					}
				})
			}
			asked.Wait()
		})
	}
}
