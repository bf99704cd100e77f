//go:build race

package main

// raceFlags build the product as these tests are built, so that its packages
// are compiled once.
var raceFlags = []string{"-race"}
