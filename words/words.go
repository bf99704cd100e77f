// Package words says sizes, times, counts and what strangers wrote as people read
// them, in messages and on terminals. It knows nothing of what they are about.
package words

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"entrepot/oci"

	"github.com/docker/go-units"
)

// Quote bounds what somebody else's text may add to a message.
func Quote(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}

// Printable guards a terminal from what strangers may have written: the names of
// platforms and media types are theirs.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// Bytes is a size to three digits, in powers of 1024.
func Bytes(n int64) string {
	format := "%.3g%s"
	if in := inUnit(n); in >= 1000 {
		format = "%.0f%s" // which the other would write with an exponent
	}
	return units.CustomSize(format, float64(n), 1024, binaryUnits())
}

// inUnit is n in the unit that it is shown in.
func inUnit(n int64) float64 {
	in := float64(n)
	for in >= 1024 {
		in /= 1024
	}
	return in
}

func binaryUnits() []string { return []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} }

// Share is a part of a whole, given in parts per million, in per cent.
func Share(ppm int64) string { return strconv.FormatFloat(float64(ppm)/1e4, 'f', -1, 64) + "%" }

// Count is how many there are of a thing, whose plural ends in s.
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Digest is a digest as far as people compare it; - for none.
func Digest(d oci.Digest) string {
	if d.IsZero() {
		return "-"
	}
	return d.Algorithm() + ":" + d.Hex()[:12]
}

// Ago is how long something is past; - where it never was.
func Ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	past := time.Since(t)
	if past < time.Minute {
		return "just now"
	}
	text := units.HumanDuration(past)
	return strings.ToLower(text[:1]) + text[1:] + " ago"
}

// Span is a time span without the units of which it has none.
func Span(d time.Duration) string {
	s := d.String()
	if trimmed, ok := strings.CutSuffix(s, "m0s"); ok {
		s = trimmed + "m"
	}
	if trimmed, ok := strings.CutSuffix(s, "h0m"); ok {
		s = trimmed + "h"
	}
	return s
}

// ParseSpan reads a time span, zero or more, also in whole days.
func ParseSpan(s string) (d time.Duration, ok bool) {
	if number, isDays := strings.CutSuffix(s, "d"); isDays {
		days, err := strconv.ParseUint(number, 10, 16)
		return time.Duration(days) * 24 * time.Hour, err == nil
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}

// ParseAge reads a time span that is nothing, or a second at least.
func ParseAge(s string) (time.Duration, error) {
	d, ok := ParseSpan(s)
	if !ok || d > 0 && d < time.Second {
		return 0, fmt.Errorf("%s is not an age: want a number with a unit, such as 12h or 30d", Quote(s))
	}
	return d, nil
}

// Distance counts the insertions, deletions, replacements and swaps of
// neighbours that lead from a to b (optimal string alignment).
func Distance(a, b string) int {
	var before, above, row []int
	above = make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row = make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above = above, row
	}
	return above[len(b)]
}
