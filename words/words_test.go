package words_test

import (
	"strings"
	"testing"
	"time"

	"entrepot/words"
)

func TestStrangersDoNotWriteOnTheTerminal(t *testing.T) {
	if got := words.Printable("linux/\x1b[2Jarm\u202e64\n"); got != "linux/?[2Jarm?64?" {
		t.Errorf("Printable gives %q", got)
	}
	for text, want := range map[string]string{
		"linux/\x1b[2Jarm\u202e64\n": `"linux/\x1b[2Jarm\u202e64\n"`,
		`a"b\`:                       `"a\"b\\"`,
		strings.Repeat("a", 100):     `"` + strings.Repeat("a", 100) + `"`,
		strings.Repeat("a", 101):     `"` + strings.Repeat("a", 100) + `…"`,
	} {
		if got := words.Quote(text); got != want {
			t.Errorf("Quote gives %s, want %s", got, want)
		}
	}
}

func TestSizesAndAges(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1000B", 1023 << 10: "1023KiB", 1<<30 - 1: "1024MiB", 1 << 20: "1MiB", 1536 << 20: "1.5GiB", 123456789: "118MiB"} {
		if got := words.Bytes(n); got != want {
			t.Errorf("%d bytes are %s, want %s", n, got, want)
		}
	}
	for past, want := range map[time.Duration]string{-time.Hour: "just now", time.Second: "just now", 90 * time.Second: "about a minute ago", 50 * time.Hour: "2 days ago"} {
		if got := words.Ago(time.Now().Add(-past)); got != want {
			t.Errorf("%v ago is %q, want %q", past, got, want)
		}
	}
	for text, want := range map[string]time.Duration{"0s": 0, "12h": 12 * time.Hour, "30d": 30 * 24 * time.Hour} {
		if got, err := words.ParseAge(text); err != nil || got != want {
			t.Errorf("ParseAge(%s) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "99999d", "-3h", "1ms", "x"} {
		if got, err := words.ParseAge(text); err == nil {
			t.Errorf("ParseAge(%q) = %v, want an error", text, got)
		}
	}
}
