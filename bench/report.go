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

// writeDocs writes performance.md and its pictures.
func writeDocs(dir string, r results) error {
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
	return os.WriteFile(filepath.Join(dir, "performance.md"), []byte(report(r, drawn)), 0o644)
}

// report is the page.
func report(r results, drawn map[string]bool) string {
	var b strings.Builder
	b.WriteString("# Performance\n\n<!-- Made by make bench from bench/results/performance.json. Do not edit: run it. -->\n\n")
	fmt.Fprintf(&b, "Measured on %s on %s. The run took %s; its figures are [bench/results/performance.json](../bench/results/performance.json), and this page is made from them alone.\n\n",
		r.Date.Format("2 January 2006"), r.Machine, (time.Duration(r.Seconds) * time.Second).Round(time.Second))
	if r.Short {
		b.WriteString("**These are sizes for trying the harness out: the figures mean nothing.**\n\n")
	}
	b.WriteString("Everything ran side by side, in rounds: each rival in turn, then each again. Figures are medians, with the range of all rounds behind them where there was more than one. " +
		"Ratios hold better on other machines than times do, so they come first. Whoever took long had fewer rounds.\n\n")
	b.WriteString("```sh\nmake bench        # all of this page, in under half an hour, as root on Debian\nmake bench-full   # and a herd of 500, and a start with 1,000,000 blobs, without limits: a page of its own in bench/bin/full\n" +
		fmt.Sprintf("make bench-check  # are ratios still as good as the committed ones, to %d %%, counts to %d %%, and all targets met that were?\n```\n\n", shared, exact))
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
		if p := pictureOf(w); drawn[p] {
			fmt.Fprintf(&b, "![%s](performance/%s.svg)\n\n", w.Title, p)
			delete(drawn, p) // one picture shows all workloads of its family: once is enough
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
	header, rule := "| |", "| --- |"
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
		if len(r.Runs) == 0 {
			continue
		}
		row := "| " + r.Name + " |"
		if r.Failed != "" {
			row = "| " + r.Name + ", **failed** |"
		}
		for _, m := range metrics {
			if m.base != "" {
				row += " " + ratioCell(w, r, m) + " |"
			}
		}
		for _, m := range metrics {
			row += " " + cell(r.Runs, m) + " |"
		}
		fmt.Fprintln(b, row)
	}
	b.WriteString("\n")
	for _, r := range failed {
		fmt.Fprintf(b, "%s failed: %s\n\n", r.Name, strings.ReplaceAll(r.Failed, "|", `\|`))
	}
}

func ratioCell(w workloadResult, r rivalResult, m metric) string {
	v, err := w.relative(r.Name, m)
	if err != nil {
		return ""
	}
	return "**" + strings.TrimSuffix(times(v), " ×") + "**"
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
