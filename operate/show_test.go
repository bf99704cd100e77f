package operate

import (
	"bytes"
	"strings"
	"testing"
)

func TestBarsAreDrawnAndTakenAway(t *testing.T) {
	var out bytes.Buffer
	b := &bar{out: &out, what: "reading", bytes: true}
	b.show(0, 0)
	b.show(1<<20, 4<<20)
	b.show(4<<20, 4<<20)
	b.show(4<<20, 5<<20)
	b.end()
	if got := out.String(); !strings.Contains(got, "reading") || !strings.Contains(got, "25%") || !strings.HasSuffix(strings.TrimRight(got, " "), "\r") {
		t.Errorf("drawn: %q", got)
	}
	out.Reset()
	b = &bar{out: &out, what: "counting"}
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
