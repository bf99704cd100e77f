package oci

import "strings"

// Matches reports whether a pattern describes all of s: '*' stands for any
// number of characters, slashes too, '?' for one, '[0-9]' and the like for one
// digit or letter of a range. It takes time in proportion to both lengths.
func Matches(pattern, s string) bool {
	star, again := -1, 0
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, again = p, i
			p++
			continue
		}
		if n, ok := matchOne(pattern[p:], s[i]); ok {
			p, i = p+n, i+1
			continue
		}
		if star < 0 {
			return false
		}
		again++
		p, i = star+1, again
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne matches c with the first element of a pattern that is n bytes long.
func matchOne(pattern string, c byte) (n int, ok bool) {
	switch {
	case pattern == "":
		return 0, false
	case pattern[0] == '?':
		return 1, true
	case pattern[0] == '[' && len(pattern) >= 5 && pattern[2] == '-' && pattern[4] == ']':
		return 5, pattern[1] <= c && c <= pattern[3]
	}
	return 1, pattern[0] == c
}
