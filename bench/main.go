// Command bench measures the product beside what its users would pick instead,
// in one run on one machine, and writes what it found: results as JSON, tables
// as docs/performance.md, pictures as SVG.
//
// It knows nothing of the product's packages: every server is a process that it
// starts, asks over HTTP, and watches in /proc. Upstream is the fake Hub of
// internal/ocitest in a process of its own. Start reading at workloads.go, the
// list of what is done; rivals.go says to whom, run.go in which order, and
// report.go what becomes of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// helpers are what this binary is when the harness starts it as a server of its
// own. The first argument picks one.
var helpers = map[string]func(context.Context, []string) error{
	"hub":  runHub,
	"bare": runBare,
}

// options are what a run is told by its flags.
type options struct {
	root    string // of the project
	work    string // where servers keep their files
	only    []string
	rivals  []string
	custom  repeated
	full    bool
	short   bool
	rounds  int
	began   int64 // Unix time at which make did; 0: nobody told
	results string
	docs    string
	check   string
	report  bool
	list    bool

	buildFlags []string // of the product; tests have their own
}

// isPart reports a run that leaves something out.
func (o options) isPart() bool { return len(o.only) > 0 || len(o.rivals) > 0 || o.rounds > 0 }

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && helpers[args[0]] != nil {
		return helpers[args[0]](ctx, args[1:])
	}
	o := options{buildFlags: []string{"-trimpath"}}
	var only, rivals string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.root, "root", "..", "the project's directory")
	flags.StringVar(&o.work, "work", "/var/tmp", "where servers keep their files: a local disk")
	flags.StringVar(&only, "run", "", "only workloads whose names begin so: cold-pull,herd")
	flags.StringVar(&rivals, "rivals", "", "only these, beside entrepot: nginx-cache,bare")
	flags.Var(&o.custom, "rival", "another one, name=command or name/prefix=command (may be repeated); see rivals.go")
	flags.BoolVar(&o.full, "full", false, "add a herd of 500 and a start with 1,000,000 blobs, and let rounds take as long as they do")
	flags.BoolVar(&o.short, "short", false, "tiny sizes and one round: does the harness work?")
	flags.IntVar(&o.rounds, "rounds", 0, "rounds of each workload; 0: as each says")
	flags.Int64Var(&o.began, "began", 0, "Unix time at which what is needed began to be installed and built, to tell how long all took")
	flags.StringVar(&o.results, "results", "", "write the results, or with -report read them: a JSON file; empty: print a summary only")
	flags.StringVar(&o.docs, "docs", "", "write performance.md, and its pictures into performance/, in this directory")
	flags.StringVar(&o.check, "check", "", "compare ratios, counts and targets with those of this JSON file, and fail where they are worse")
	flags.BoolVar(&o.report, "report", false, "measure nothing: make -docs, and compare with -check, from -results")
	flags.BoolVar(&o.list, "list", false, "list workloads and rivals")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag: see bench -h", flags.Arg(0))
	}
	if o.short && o.full {
		return errors.New("-short and -full exclude each other")
	}
	o.only, o.rivals = fields(only), fields(rivals)
	if o.list {
		return listAll(o)
	}
	var found results
	var err error
	if o.report {
		found, err = readResults(o.results)
	} else {
		found, err = measure(ctx, o)
	}
	if err != nil {
		return err
	}
	return publish(found, o)
}

// publish writes what was found wherever it is wanted, and compares last. What
// failed that may not is an error, after all has been written.
func publish(found results, o options) error {
	if o.results != "" && !o.report {
		if err := writeResults(o.results, found); err != nil {
			return err
		}
	}
	if o.docs != "" {
		if err := writeDocs(o.docs, o.results, found); err != nil {
			return err
		}
	}
	if o.docs == "" && o.check == "" {
		fmt.Print(tables(found))
	}
	if o.check == "" {
		return broken(found)
	}
	committed, err := readResults(o.check)
	if err != nil {
		return err
	}
	verdict := compare(committed, found, o)
	fmt.Print(verdict.text)
	if verdict.worse > 0 {
		return errors.Join(broken(found), fmt.Errorf("%d figures are worse than those of %s", verdict.worse, committed.Date.Format(time.DateOnly)))
	}
	return broken(found)
}

// repeated is a flag that may be repeated.
type repeated []string

func (l *repeated) String() string     { return strings.Join(*l, " ") }
func (l *repeated) Set(s string) error { *l = append(*l, s); return nil }

// fields splits a list at its commas.
func fields(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
