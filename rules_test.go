package main

import (
	"net/http"
	"strings"
	"testing"

	"entrepot/internal/ocitest"
)

// TestCacheRules asks through the front door: what is pulled by a rule comes from
// its source, with the rule's account, and is held as what it is there.
func TestCacheRules(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.AddUser("robot", "secret")
	hub.AddUser("other", "secret")
	open, private, other := ocitest.RandomImage(1, 100), ocitest.RandomImage(2, 100), ocitest.RandomImage(3, 100)
	hub.Push("library/alpine", "latest", open)
	hub.Push("team/app", "1", private)
	hub.Push("team/special", "1", other)
	hub.Private("team/app", "robot")
	hub.Private("team/special", "other")
	p := startProgram(t, hub,
		"ENTREPOT_RULE_0_TARGET=ours/*", "ENTREPOT_RULE_0_SOURCE=docker.io/team/*", "ENTREPOT_RULE_0_USERNAME=robot", "ENTREPOT_RULE_0_PASSWORD=secret",
		"ENTREPOT_RULE_1_TARGET=ours/special", "ENTREPOT_RULE_1_SOURCE=docker.io/team/special", "ENTREPOT_RULE_1_USERNAME=other", "ENTREPOT_RULE_1_PASSWORD_FILE="+writeFile(t, "secret\n"),
		"ENTREPOT_RULE_2_TARGET=hub/*", "ENTREPOT_RULE_2_SOURCE=docker.io/*",
		"ENTREPOT_RULE_3_TARGET=old.example/*", "ENTREPOT_RULE_3_SOURCE=docker.io/library/*",
	)
	client := newClient(t)
	p.pull(t, client, "ours/app", "1", private)
	p.pull(t, client, "ours/special", "1", other)
	p.pull(t, client, "hub/alpine", "latest", open)
	hub.Reset()
	// The same repositories by other names: all of it is held.
	for _, name := range []string{"alpine", "hub/library/alpine", "docker.io/library/alpine", "old.example/alpine"} {
		p.pull(t, client, name, "latest", open)
	}
	for _, name := range []string{"hub/team/app", "team/app", "docker.io/team/app"} {
		p.pull(t, client, name, "1", private)
	}
	status, body, header := get(t, client, p.registry+"/v2/alpine/manifests/latest?ns=old.example")
	if status != http.StatusOK || body != string(open.Bytes()) || header.Get("OCI-Namespace") != "old.example" {
		t.Errorf("by ns: %d, namespace %q", status, header.Get("OCI-Namespace"))
	}
	wantRequests(t, hub)
	// Who names an upstream means that upstream, whatever the rules are.
	if status, body, _ := get(t, client, p.registry+"/v2/ours/app/manifests/1?ns=docker.io"); status != http.StatusNotFound && status != http.StatusForbidden {
		t.Errorf("docker.io/ours/app, which there is not: %d %s", status, body)
	}
	// A repository that may not have somebody else's private layer does not get it.
	status, body, _ = get(t, client, p.registry+"/v2/hub/alpine/blobs/"+private.Blobs[1].Digest.String())
	if status != http.StatusNotFound {
		t.Errorf("a private layer under a public name: %d %.80s", status, body)
	}
	if _, body, _ := get(t, client, p.registry+"/v2/_catalog"); !strings.Contains(body, "docker.io/library/alpine") || strings.Contains(body, "ours/") {
		t.Errorf("the catalogue is not in path form: %s", body)
	}
}
