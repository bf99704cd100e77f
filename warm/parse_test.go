package warm

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"entrepot/oci"
)

func TestPlatforms(t *testing.T) {
	amd, v6, v7, unsaid := oci.Platform{OS: "linux", Architecture: "amd64"}, oci.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, oci.Platform{}
	attestation := oci.Platform{OS: "unknown", Architecture: "unknown"}
	native := oci.Platform{OS: "linux", Architecture: runtime.GOARCH}
	for _, tc := range []struct {
		text string
		want []oci.Platform
		not  []oci.Platform
	}{
		{"all", []oci.Platform{amd, v6, v7, unsaid, attestation}, nil},
		{"linux/amd64", []oci.Platform{amd, unsaid}, []oci.Platform{v6, v7, attestation}},
		{"linux/arm", []oci.Platform{v6, v7}, []oci.Platform{amd}},
		{"linux/arm/v7, linux/amd64", []oci.Platform{v7, amd}, []oci.Platform{v6}},
		{"native", []oci.Platform{native}, []oci.Platform{v6, attestation}},
	} {
		p, err := ParsePlatforms(tc.text)
		if err != nil || p.String() != tc.text {
			t.Errorf("%q: %q, %v", tc.text, p, err)
		}
		for _, one := range tc.want {
			if !p.want(one) {
				t.Errorf("%q leaves out %+v", tc.text, one)
			}
		}
		for _, one := range tc.not {
			if p.want(one) {
				t.Errorf("%q takes %+v", tc.text, one)
			}
		}
	}
	if got := (Platforms{}).String(); got != "all" || !(Platforms{}).want(v6) {
		t.Errorf("the zero value is %q", got)
	}
	for _, text := range []string{"", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "Linux/amd64", "linux/amd64,", "linux/amd64,linux/amd64", "linux/amd64 linux/arm", "linux/potato", "linux/x86_64", "lunix/amd64", "a/" + strings.Repeat("b", 65)} {
		if p, err := ParsePlatforms(text); err == nil {
			t.Errorf("%q: %v, want an error", text, p)
		}
	}
}

func TestWindow(t *testing.T) {
	for _, tc := range []struct {
		text, now string
		wait      time.Duration
	}{
		{"22:00-06:00", "21:59", time.Minute},
		{"22:00-06:00", "22:00", 0},
		{"22:00-06:00", "00:00", 0},
		{"22:00-06:00", "05:59", 0},
		{"22:00-06:00", "06:00", 16 * time.Hour},
		{"01:30-02:00", "01:29", time.Minute},
		{"01:30-02:00", "01:59", 0},
		{"01:30-02:00", "02:00", 23*time.Hour + 30*time.Minute},
	} {
		w, err := ParseWindow(tc.text)
		if err != nil || w.String() != tc.text {
			t.Errorf("%q: %q, %v", tc.text, w, err)
		}
		now, _ := time.Parse("2006-01-02 15:04", "2026-11-25 "+tc.now)
		if got := w.wait(now); got != tc.wait {
			t.Errorf("%s at %s: %v, want %v", tc.text, tc.now, got, tc.wait)
		}
	}
	if got := (Window{}).wait(time.Now()); got != 0 || (Window{}).String() != "" {
		t.Errorf("the whole day: %v", got)
	}
	for _, text := range []string{"", "22:00", "22-06", "25:00-06:00", "22:00-22:00", "22:00-06:60", "a-b"} {
		if w, err := ParseWindow(text); err == nil {
			t.Errorf("%q: %v, want an error", text, w)
		}
	}
}
