package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// made is an image that claims to have been made at a time.
func made(seed uint64, platform oci.Platform, at time.Time, size int64) ocitest.Image {
	config := ocitest.Bytes("application/vnd.oci.image.config.v1+json", fmt.Appendf(nil, `{"os":%q,"architecture":%q,"created":%q,"rootfs":{"type":"layers"}}`, platform.OS, platform.Architecture, at.Format(time.RFC3339)))
	return ocitest.ImageSpec{Platform: platform, Config: &config, Layers: []ocitest.Content{ocitest.Blob(seed, size)}}.Build()
}

var (
	amd64   = oci.Platform{OS: "linux", Architecture: "amd64"}
	arm64   = oci.Platform{OS: "linux", Architecture: "arm64"}
	windows = oci.Platform{OS: "windows", Architecture: "amd64"}
)

// TestPolicyAtTheFrontDoor asks for images by tag, and for what they consist of
// by digest, and looks at what upstream was asked for.
func TestPolicyAtTheFrontDoor(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	old, young := time.Now().Add(-30*24*time.Hour), time.Now().Add(-time.Hour)
	fine, fresh, large := made(1, amd64, old, 1000), made(2, amd64, young, 1000), made(3, amd64, old, 500_000)
	forged := made(4, amd64, time.Unix(0, 0), 1000)
	foreign := made(5, windows, old, 1000)
	many := ocitest.Index(made(6, amd64, old, 1000), made(7, arm64, old, 1000), made(8, windows, old, 1000))
	for tag, image := range map[string]ocitest.Image{"fine": fine, "fresh": fresh, "large": large, "forged": forged, "foreign": foreign, "many": many} {
		hub.Push("team/app", tag, image)
	}
	hub.Push("evil/app", "1", fine)
	hub.Push("library/alpine", "latest", made(9, amd64, young, 900_000))
	hub.Push("library/alpine", "3.20", made(10, amd64, young, 900_000))
	p := startProgram(t, hub,
		"ENTREPOT_POLICY_0_MATCH=docker.io/evil/*", "ENTREPOT_POLICY_0_ACTION=deny",
		"ENTREPOT_POLICY_1_MATCH=*:latest", "ENTREPOT_POLICY_1_ACTION=deny",
		"ENTREPOT_POLICY_2_MATCH=docker.io/library/*", "ENTREPOT_POLICY_2_ACTION=allow",
		"ENTREPOT_POLICY_3_MATCH=docker.io/team/*", "ENTREPOT_POLICY_3_MIN_AGE=3d", "ENTREPOT_POLICY_3_PLATFORMS=linux/amd64,linux/arm64", "ENTREPOT_POLICY_3_MAX_SIZE=100KB",
		"ENTREPOT_POLICY_4_MATCH=*", "ENTREPOT_POLICY_4_ACTION=deny",
	)
	client := newClient(t)
	for _, row := range []struct {
		path string
		want string // in the error; empty: it is served
	}{
		{"team/app/manifests/fine", ""},
		{"team/app/manifests/fresh", "rule 3 (docker.io/team/*) denies docker.io/team/app:fresh: it is 1h"},
		{"team/app/manifests/forged", "3d is the least"}, // 1970 says nothing
		{"team/app/manifests/large", "100000 are allowed"},
		{"team/app/manifests/foreign", "it is for windows/amd64, and only linux/amd64, linux/arm64 is allowed"},
		{"team/app/manifests/many", ""},
		{"team/app/manifests/" + many.Children[0].Digest.String(), ""},
		{"team/app/manifests/" + many.Children[1].Digest.String(), ""},
		{"team/app/manifests/" + many.Children[2].Digest.String(), "it is for windows/amd64"},
		{"team/app/manifests/" + fresh.Digest.String(), "it is 1h"}, // a digest is what its tags are
		{"team/app/manifests/missing", "MANIFEST_UNKNOWN"},
		{"library/alpine/manifests/3.20", ""},
		{"library/alpine/manifests/latest", "rule 1 (*:latest) denies docker.io/library/alpine:latest"},
		{"evil/app/manifests/1", "rule 0 (docker.io/evil/*) denies docker.io/evil/app:1"},
		{"evil/app/manifests/" + fine.Digest.String(), "rule 0"},
		{"evil/app/blobs/" + fine.Blobs[1].Digest.String(), "rule 0"}, // though it is held
		{"evil/app/tags/list", "rule 0"},
		{"other/app/manifests/1", "rule 4"},
		{"other/app/blobs/" + fine.Blobs[1].Digest.String(), "rule 4"},
	} {
		for range 2 { // judged, and remembered
			status, body, header := get(t, client, p.registry+"/v2/"+row.path)
			switch {
			case row.want == "" && status != http.StatusOK,
				row.want != "" && (status == http.StatusOK || !strings.Contains(body, row.want)),
				row.want != "" && row.want != "MANIFEST_UNKNOWN" && (status != http.StatusForbidden || !strings.Contains(body, `"code":"DENIED"`) || header.Get("Content-Type") != "application/json"):
				t.Errorf("%s: %d %s; want %q", row.path, status, body, row.want)
			}
			if head, err := client.Head(p.registry + "/v2/" + row.path); err != nil {
				t.Error(err)
			} else if head.Body.Close(); head.StatusCode != status && !strings.HasSuffix(row.path, "/list") {
				t.Errorf("%s: HEAD %d, GET %d", row.path, head.StatusCode, status)
			}
		}
	}
	// What was refused by name was not asked for, and no layer of what was refused
	// by its content.
	for _, line := range hub.Lines() {
		if strings.Contains(line, "evil/app") || strings.Contains(line, "other/app") || strings.Contains(line, "alpine:latest") {
			t.Errorf("upstream was asked: %s", line)
		}
	}
	for name, image := range map[string]ocitest.Image{"fresh": fresh, "large": large, "forged": forged, "foreign": foreign} {
		if n := hub.Count(ocitest.Match{Role: ocitest.CDN, Reference: image.Blobs[1].Digest.String()}); n != 0 {
			t.Errorf("a layer of %s was fetched", name)
		}
	}
	if _, body, _ := get(t, client, p.admin+"/metrics"); !strings.Contains(body, `entrepot_policy_refused_total{mode="enforced",rule="3"}`) {
		t.Error("refusals are not counted")
	}
}

// TestPolicySurvivesARestart: a tag that was allowed goes on to allow what it
// leads to, when only that is asked for.
func TestPolicySurvivesARestart(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	many := ocitest.Index(made(1, amd64, time.Now(), 1000), made(2, arm64, time.Now(), 1000))
	hub.Push("team/app", "1.2", many)
	stray := made(3, amd64, time.Now(), 1000)
	hub.Push("team/app", "edge", stray)
	settings := []string{
		"ENTREPOT_DATA=" + t.TempDir(), "ENTREPOT_POLICY_0_MATCH=*:[0-9]*", "ENTREPOT_POLICY_0_ACTION=allow", "ENTREPOT_POLICY_1_MATCH=*", "ENTREPOT_POLICY_1_ACTION=deny",
	}
	client := newClient(t)
	p := startProgram(t, hub, settings...)
	if status, body, _ := get(t, client, p.registry+"/v2/team/app/manifests/1.2"); status != http.StatusOK {
		t.Fatal(status, body)
	}
	stopProgram(t, p)
	p = startProgram(t, hub, settings...)
	for _, row := range []struct {
		reference string
		status    int
	}{
		{many.Digest.String(), http.StatusOK},
		{many.Children[1].Digest.String(), http.StatusOK},
		{stray.Digest.String(), http.StatusForbidden},
		{"edge", http.StatusForbidden},
	} {
		if status, body, _ := get(t, client, p.registry+"/v2/team/app/manifests/"+row.reference); status != row.status {
			t.Errorf("%s: %d %s, want %d", row.reference, status, body, row.status)
		}
	}
}

// TestPolicyDryRun refuses nothing, and tells of all that it would.
func TestPolicyDryRun(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := made(1, amd64, time.Now(), 1000)
	hub.Push("team/app", "1", image)
	hub.Push("evil/app", "1", image)
	dir := t.TempDir()
	settings := []string{
		"ENTREPOT_DATA=" + dir, "ENTREPOT_POLICY_DRY_RUN=true",
		"ENTREPOT_POLICY_0_MATCH=docker.io/evil/*", "ENTREPOT_POLICY_0_ACTION=deny",
		"ENTREPOT_POLICY_1_MATCH=*", "ENTREPOT_POLICY_1_MIN_AGE=24h", "ENTREPOT_POLICY_1_AGE_FROM=seen",
	}
	p := startProgram(t, hub, settings...)
	client := newClient(t)
	p.pull(t, client, "team/app", "1", image)
	p.pull(t, client, "evil/app", "1", image)
	_, body, _ := get(t, client, p.admin+"/metrics")
	for _, line := range []string{`entrepot_policy_refused_total{mode="dry_run",rule="0"} 3`, `entrepot_policy_refused_total{mode="dry_run",rule="1"} 1`} {
		if !strings.Contains(body, line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
	if !strings.Contains(p.log.String(), `"message":"policy: would be refused"`) {
		t.Error("the log tells nothing")
	}
	awaitNoFills(t, client, p.admin)
	server := operator{t, environ(append(settings, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))...)}
	wantLines(t, server.must("explain", "--table", "evil/app:1"), `policy +denied by rule 0 \(docker.io/evil/\*\); a dry run, which refuses nothing`)
	wantLines(t, server.must("explain", "--table", "team/app:1"), `policy +denied by rule 1 \(\*\): it is \d+s old, and 1d is the least; a dry run, which refuses nothing`)
	wantLines(t, server.must("explain", "--table", "team/app:2"), `policy +up to rule 1 \(\*\) once it is known what it is; .*`)
}

// TestWhatIsRefusedHasNoPrice: explain names the rule once, and what there is no
// pull of costs nothing.
func TestWhatIsRefusedHasNoPrice(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := made(1, amd64, time.Now(), 1000)
	hub.Push("team/app", "1", image)
	settings := []string{"ENTREPOT_DATA=" + t.TempDir(), "ENTREPOT_POLICY_0_MATCH=*:1", "ENTREPOT_POLICY_0_MIN_AGE=3d", "ENTREPOT_POLICY_0_AGE_FROM=seen", "ENTREPOT_POLICY_1_MATCH=*/evil:*", "ENTREPOT_POLICY_1_ACTION=deny"}
	p := startProgram(t, hub, settings...)
	if status, body, _ := get(t, newClient(t), p.registry+"/v2/team/app/manifests/1"); status != http.StatusForbidden {
		t.Fatal(status, body)
	}
	server := operator{t, environ(append(settings, "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))...)}
	for name, want := range map[string]string{
		"team/app:1":  `policy +denied by rule 0 \(\*:1\): it is \d+s old, and 3d is the least`,
		"team/evil:2": `policy +denied by rule 1 \(\*/evil:\*\)`,
	} {
		wantLines(t, server.must("explain", "--table", name), want, `a pull is refused, and costs nothing`)
		if out := server.must("explain", "--json", name); !strings.Contains(out, `"denied":true`) || !strings.Contains(out, `"pulls":[]`) {
			t.Errorf("%s: %s", name, out)
		}
	}
	if out := server.must("explain", "--json", "team/app:2"); strings.Contains(out, `"denied"`) || strings.Contains(out, `"pulls":[]`) {
		t.Errorf("what is allowed: %s", out)
	}
}

// TestARefusedManifestIsNoBlobEither: to be judged it was fetched, so it is held,
// and nobody has it by the other route.
func TestARefusedManifestIsNoBlobEither(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := made(1, amd64, time.Now(), 1000)
	hub.Push("team/app", "1", image)
	settings := []string{"ENTREPOT_DATA=" + t.TempDir(), "ENTREPOT_POLICY_0_MATCH=*", "ENTREPOT_POLICY_0_MIN_AGE=3d"}
	client := newClient(t)
	for _, kind := range []string{"manifests", "blobs"} { // the second one of a process that remembers nothing
		p := startProgram(t, hub, settings...)
		if status, body, _ := get(t, client, p.registry+"/v2/team/app/"+kind+"/"+image.Digest.String()); status != http.StatusForbidden || !strings.Contains(body, "3d is the least") {
			t.Errorf("%s: %d %s", kind, status, body)
		}
		stopProgram(t, p)
	}
}
