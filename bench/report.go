package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// notMeasured is what the report owns up to, whatever was run.
var notMeasured = []string{
	"Real networks, real registries, TLS: everything runs over loopback, in the clear, on one machine. Servers, clients and the fake upstream share its cores; only the servers' own CPU time is counted as theirs.",
	"Tokens: the fake upstream asks nobody for one. Docker Hub does, which costs a first pull round trips more, with a cache or without.",
	"Real clients: the harness asks as they do and reads every byte, but unpacks nothing. Correctness with real ones is what `make e2e` is about.",
	"Cold page caches and cold disks: what is warm was just written, and lies in the kernel's memory.",
	"Long runs: rounds take seconds. What weeks do to a cache is not in here.",
	"Start-up of rivals with content: only our own directory is filled by the harness.",
	"Memory of file contents that the kernel caches for a server: it is the kernel's, and the same for all.",
}

// notes are what the figures of a workload do not tell.
var notes = map[string]string{
	farName: "What entrepot takes more is for its bound on what lies unsent in the kernel, 128 KiB, which lets it see that a slow client gets on: " +
		"it wakes for each 64 KiB or so, others for a megabyte ([decision 8](decisions/0008-near-clients.md)).",
}

// writeDocs writes performance.md and its pictures. from is the file that has the
// results; empty: none has.
func writeDocs(dir, from string, r results) error {
	pictures := filepath.Join(dir, "performance")
	if err := os.MkdirAll(pictures, 0o755); err != nil {
		return err
	}
	drawn := map[string]bool{}
	for _, p := range plots(r) {
		svg, err := p.draw()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		drawn[p.name] = true
		if err := os.WriteFile(filepath.Join(pictures, p.name+".svg"), svg, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "performance.md"), []byte(report(r, drawn, linkTo(from, dir))), 0o644)
}

// linkTo is how a page in a directory links to a file; empty if it cannot.
func linkTo(file, dir string) string {
	to, err := filepath.Abs(file)
	if file == "" || err != nil {
		return ""
	}
	at, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	link, err := filepath.Rel(at, to)
	if err != nil {
		return ""
	}
	return filepath.ToSlash(link)
}

// report is the page. link leads to the results that it is made from.
func report(r results, drawn map[string]bool, link string) string {
	var b strings.Builder
	command, figures := "make bench", "its figures were not kept"
	if r.Full {
		command = "make bench-full"
	}
	if link != "" {
		figures = fmt.Sprintf("its figures are [%s](%s), and this page is made from them alone", strings.TrimPrefix(link, "../"), link)
	}
	fmt.Fprintf(&b, "# Performance\n\n<!-- Made by %s. Do not edit: run it. -->\n\n", command)
	took := func(seconds float64) time.Duration { return (time.Duration(seconds) * time.Second).Round(time.Second) }
	before := ""
	if r.Before > 0 {
		before = fmt.Sprintf(", after %s in which what was missing was installed and built", took(r.Before))
	}
	what := "The run"
	if r.Partial {
		what = "**Not all workloads, rivals or rounds were run**; what was"
	}
	fmt.Fprintf(&b, "Measured on %s on %s. %s took %s%s; %s.\n\n",
		r.Date.Format("2 January 2006"), r.Machine, what, took(r.Seconds), before, figures)
	if r.Short {
		b.WriteString("**These are sizes for trying the harness out: the figures mean nothing.**\n\n")
	}
	b.WriteString("Everything ran side by side, in rounds: each rival in turn, then each again. Figures are medians, with the range of all rounds behind them where there was more than one. " +
		"Ratios hold better on other machines than times do, so they come first. Whoever took long, or is not what ours is measured by, had fewer rounds. The range of a ratio is of those of the single rounds.\n\n")
	b.WriteString("```sh\nmake bench        # all of this page, in under half an hour, as root on Debian with Go\nmake bench-full   # and a herd of 500, and a start with 1,000,000 blobs, without limits: a page of its own in bench/bin/full\n" +
		"make bench-check  # are they still as good as the committed ones?\n```\n\n")
	fmt.Fprintf(&b, "`make bench-check` compares ratios and fails where one is worse by more than %d %%; counts, by %d %%, of the worst round; what is kept on disk, and hits by objects, by %d %%; memory, by %d %%; "+
		"processor time of few bytes, and the slowest of many answers, by %d %%; first bytes in a crowd, start-up, and processor time over one connection, by %d %%. Targets that were met have to be; of requests for manifests, 0.92 × will do there.\n\n", shared, exact, near, rough, coarse, wild)
	b.WriteString("Another cache joins by its start command, which finds `LISTEN`, `PORT`, `UPSTREAM`, `DATA`, `TTL` and `CACHE_SIZE` in its environment; what follows the slash is put before repositories' names:\n\n" +
		"```sh\nmake bench BENCHFLAGS=\"-rival 'other/hub=exec other-registry --listen \\$\\$LISTEN --upstream \\$\\$UPSTREAM --data \\$\\$DATA'\"\n```\n\n")
	writeTargets(&b, r)
	writeRivals(&b, r)
	if drawn[memoryPicture] {
		fmt.Fprintf(&b, "## Memory\n\nThe most that no file stands behind, in each workload; the tables below have all that is resident too.\n\n![Memory](performance/%s.svg)\n\n", memoryPicture)
	}
	b.WriteString(tablesWith(r, drawn))
	b.WriteString("## What was not measured\n\n")
	for _, w := range r.Workloads {
		if w.Skipped != "" {
			fmt.Fprintf(&b, "- %s: %s.\n", w.Title, w.Skipped)
		}
	}
	if !r.Full {
		b.WriteString("- A herd of 500, and a start with 1,000,000 blobs: `make bench-full` does.\n")
	}
	for _, line := range notMeasured {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	return b.String()
}

func writeTargets(b *strings.Builder, r results) {
	b.WriteString("## Targets\n\n| | target | found | |\n| --- | --- | --- | --- |\n")
	for _, t := range targets {
		j := t.of(r)
		mark := string(j.state)
		if j.reason != "" {
			mark += " (" + strings.ReplaceAll(j.reason, "|", `\|`) + ")"
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", t.what, t.wanted, j.found, mark)
	}
	b.WriteString("\n")
}

func writeRivals(b *strings.Builder, r results) {
	b.WriteString("## Who\n\n| | | version |\n| --- | --- | --- |\n")
	for _, rival := range r.Rivals {
		fmt.Fprintf(b, "| %s | %s | %s |\n", rival.Name, rival.About, rival.Version)
	}
	b.WriteString("\n")
}

// tables are the workloads without pictures.
func tables(r results) string { return tablesWith(r, nil) }

func tablesWith(r results, drawn map[string]bool) string {
	var b strings.Builder
	for _, w := range r.Workloads {
		if w.Skipped != "" {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", w.Title, w.About)
		for _, p := range picturesOf(w) {
			if drawn[p] {
				fmt.Fprintf(&b, "![%s](performance/%s.svg)\n\n", w.Title, p)
				delete(drawn, p) // one picture shows all workloads of its family: once is enough
			}
		}
		writeTable(&b, w)
		if note := notes[w.Name]; note != "" {
			b.WriteString(note + "\n\n")
		}
	}
	return b.String()
}

// writeTable has a row for each rival: ratios first, then figures.
func writeTable(b *strings.Builder, w workloadResult) {
	metrics := families[w.Family].metrics
	header, rule := "| | rounds |", "| --- | --- |"
	for _, m := range metrics {
		if m.base != "" {
			header += fmt.Sprintf(" %s / %s's |", m.title, m.base)
			rule += " --- |"
		}
	}
	for _, m := range metrics {
		header += " " + m.title + " |"
		rule += " --- |"
	}
	fmt.Fprintf(b, "%s\n%s\n", header, rule)
	var failed []rivalResult
	for _, r := range w.Rivals {
		if r.Failed != "" {
			failed = append(failed, r)
		}
		name := r.Name
		if r.Failed != "" {
			name += ", **failed**"
		}
		fmt.Fprintf(b, "| %s | %d |", name, len(r.Runs))
		for _, m := range metrics {
			if m.base != "" {
				fmt.Fprintf(b, " %s |", ratioCell(w, r, m))
			}
		}
		for _, m := range metrics {
			fmt.Fprintf(b, " %s |", cell(r.Runs, m))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, r := range failed {
		fmt.Fprintf(b, "%s failed: %s\n\n", r.Name, strings.ReplaceAll(r.Failed, "|", `\|`))
	}
}

// ratioCell is of medians; behind it are the least and the most of single rounds.
func ratioCell(w workloadResult, r rivalResult, m metric) string {
	v, err := w.relative(r.Name, m)
	if err != nil {
		return ""
	}
	bare := func(v float64) string { return strings.TrimSuffix(times(v), " ×") }
	text := "**" + bare(v) + "**"
	s, ok := summarize(w.byRound(r, m), m.key)
	if lowest, highest := bare(s.min), bare(s.max); ok && s.n > 1 && lowest != highest {
		text += fmt.Sprintf(" (%s–%s)", lowest, highest)
	}
	return text
}

func cell(runs []measures, m metric) string {
	s, ok := summarize(runs, m.key)
	if !ok {
		return ""
	}
	text := m.format(s.median)
	if lowest, highest := m.format(s.min), m.format(s.max); s.n > 1 && lowest != highest {
		text += fmt.Sprintf(" (%s–%s)", lowest, highest)
	}
	return text
}
