package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// plain has three significant digits at least.
func plain(v float64) string {
	switch a := math.Abs(v); {
	case v == 0:
		return "0"
	case a >= 100:
		return thousands(int(math.Round(v)))
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a >= 0.1:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

func seconds(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 1e-3:
		return plain(v*1e6) + " µs"
	case v < 1:
		return plain(v*1e3) + " ms"
	}
	return plain(v) + " s"
}

func times(v float64) string    { return plain(v) + " ×" }
func percent(v float64) string  { return strconv.FormatFloat(100*v, 'f', 1, 64) + " %" }
func count(v float64) string    { return thousands(int(math.Round(v))) }
func mebibyte(v float64) string { return plain(v/(1<<20)) + " MiB" }
func megabyte(v float64) string { return plain(v/1e6) + " MB" }

// mebibytes is the sum of sizes, with what it is made of.
func mebibytes(sizes []int64) string {
	sum, parts := int64(0), []string{}
	for _, n := range sizes {
		sum += n
		parts = append(parts, strconv.FormatInt(n>>20, 10))
	}
	if len(sizes) == 1 {
		return parts[0] + " MiB"
	}
	return strings.Join(parts, " + ") + " MiB"
}

func gibibytes(n int64) string { return strconv.FormatFloat(float64(n)/(1<<30), 'f', 0, 64) + " GiB" }

// thousands writes a number with commas.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
