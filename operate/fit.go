package operate

import (
	"fmt"
	"slices"
	"strings"
)

// What an operator has to see first, where a terminal is too small for all: what
// is wrong now, and then what led to it.
const (
	repositoriesWeight = iota
	clientsWeight
	accountsWeight
	spentWeight
	fillsWeight
	quotaWeight
	hostsWeight
	filesWeight
	roomWeight
	headerWeight
)

// fit is the picture in so many lines at most, 0 for any number. What is left out
// for that is named in the last one.
func (p *picture) fit(height int) []string {
	shown := make([]int, len(p.blocks)) // rows of each block; -1: not even its head
	for i, b := range p.blocks {
		shown[i] = len(b.rows)
	}
	if height > 0 && p.height(shown) > height {
		p.choose(shown, height-1)
	}
	var lines, missing []string
	for i, b := range p.blocks {
		switch {
		case shown[i] < 0:
			missing = append(missing, b.name)
			continue
		case shown[i] < len(b.rows):
			missing = append(missing, fmt.Sprintf("%d of %s", len(b.rows)-shown[i]+b.more, b.name))
		}
		lines = append(lines, b.head...)
		lines = append(lines, slices.Concat(b.rows[:shown[i]]...)...)
		if b.more > 0 && shown[i] == len(b.rows) {
			lines = append(lines, p.render([]ink{{dim, fmt.Sprintf("and %d more", b.more)}}))
		}
	}
	if len(missing) > 0 {
		lines = append(lines, p.render([]ink{{yellow, "no room for "}, {plain, strings.Join(missing, ", ")}}))
	}
	if height > 0 { // fewer lines than the heaviest need
		lines = lines[:min(len(lines), height)]
	}
	return lines
}

// height is how many lines so many rows of each block take.
func (p *picture) height(shown []int) int {
	lines := 0
	for i, b := range p.blocks {
		if shown[i] < 0 {
			continue
		}
		lines += len(b.head)
		for _, row := range b.rows[:shown[i]] {
			lines += len(row)
		}
		if b.more > 0 && shown[i] == len(b.rows) {
			lines++
		}
	}
	return lines
}

// choose gives the heaviest blocks a first row each, and then all that have one
// another in turn, for as long as there is room.
func (p *picture) choose(shown []int, height int) {
	order := make([]int, len(p.blocks))
	for i := range order {
		order[i], shown[i] = i, -1
	}
	slices.SortStableFunc(order, func(a, b int) int { return p.blocks[b].weight - p.blocks[a].weight })
	try := func(i, rows int) bool {
		before := shown[i]
		if shown[i] = rows; p.height(shown) > height {
			shown[i] = before
		}
		return shown[i] != before
	}
	for _, i := range order {
		try(i, min(1, len(p.blocks[i].rows)))
	}
	for grown := true; grown; {
		grown = false
		for _, i := range order {
			if shown[i] >= 0 && shown[i] < len(p.blocks[i].rows) && try(i, shown[i]+1) {
				grown = true
			}
		}
	}
}
