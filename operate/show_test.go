package operate

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBarsAreDrawnAndTakenAway(t *testing.T) {
	var out bytes.Buffer
	b := barOn(&out, "reading", true)
	b.show(0, 0)
	b.show(1<<20, 4<<20)
	b.show(4<<20, 4<<20)
	b.show(4<<20, 5<<20)
	b.end()
	if got := out.String(); !strings.Contains(got, "reading") || !strings.Contains(got, "25%") || !strings.HasSuffix(strings.TrimRight(got, " "), "\r") {
		t.Errorf("drawn: %q", got)
	}
	out.Reset()
	b = barOn(&out, "counting", false)
	b.count(4096)
	b.end()
	if got := out.String(); got != "\rcounting: 4096\r\x1b[K" {
		t.Errorf("drawn: %q", got)
	}
	b = &bar{what: "unseen"}
	b.show(1, 2)
	b.count(3)
	b.end()
}

// TestBarsTellTheRateSinceTheStart: not since they were drawn first, which is
// when much may have been done.
func TestBarsTellTheRateSinceTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		b := barOn(&out, "reading", true)
		for _, total := range []int64{20 << 20, 30 << 20} {
			time.Sleep(2 * time.Second)
			out.Reset()
			b.show(total, 100<<20)
			want := map[int64]string{20 << 20: "(10 MiB/s)", 30 << 20: "(7.5 MiB/s)"}[total]
			if got := out.String(); !strings.Contains(got, want) {
				t.Errorf("drawn: %q, want %q", got, want)
			}
		}
		b.end()
	})
}

// A list that explains its rows keeps inside the terminal, as what is piped does not.
func TestTablesFitTheTerminal(t *testing.T) {
	for width, want := range map[int]string{
		0:  "IMAGE       STATUS\none         warm\nother       failed\n    registry.test: no answer in time?\nthe third   warm\n",
		16: "IMAGE       STA…\none         warm\nother       fai…\n    registry.te…\nthe third   warm\n",
	} {
		var out bytes.Buffer
		table := (&operation{in: Invocation{Stdout: &out}}).newTable("IMAGE", "STATUS")
		table.width = width
		for _, row := range [][]string{{"one", "warm"}, {"other", "failed"}, {"the third", "warm"}} {
			if err := table.row(nil, row...); err != nil {
				t.Fatal(err)
			}
			if row[1] == "failed" {
				table.under("registry.test: no answer in time\n")
			}
		}
		if err := table.end(""); err != nil || out.String() != want {
			t.Errorf("%d columns: %v\n%q\nwant\n%q", width, err, out.String(), want)
		}
	}
}
