// Package operate has the commands for operators: each asks the admin API, whoever
// serves it, and shows the answer as a table or as lines of JSON.
//
// Start with Commands, then operation, which they have in common. This package
// reads no settings and opens no data directory; who can be asked is found by
// Settings.Connect.
package operate

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"entrepot/admin"
	"entrepot/oci"
	"entrepot/warm"
	"entrepot/words"
)

// Command is one thing that an operator can tell the program to do.
type Command struct {
	Name    string
	Summary string // one line in the list of commands
	Help    string
	Run     func(ctx context.Context, in Invocation) error
}

// Commands are all of them, in the order of the help text.
func Commands() []Command {
	return []Command{
		{"status", "show quotas, outages, who spends what, and what is on its way", statusHelp, status},
		{"ls", "list what is held: repositories, or the images of one", lsHelp, list},
		{"rules", "list the cache rules, in the order in which they are tried", rulesHelp, listRules},
		{"explain", "say what a name means, if it is held, and what a pull would cost", explainHelp, explain},
		{"rm", "forget tags, manifests, or whole repositories", rmHelp, remove},
		{"pin", "protect images from eviction, or list those that are", pinHelp, pin},
		{"unpin", "take a pin away", unpinHelp, unpin},
		{"warm", "fetch images ahead of clients, or list those that are kept warm", warmHelp, warmImages},
		{"refresh", "check now what tags name, whatever is remembered of them", refreshHelp, refresh},
		{"prune", "remove what nobody needs any more", pruneHelp, prune},
		{"verify", "compare all that is held with its digests", verifyHelp, verify},
		{"df", "show what the data directory takes, and what would go next", dfHelp, usage},
	}
}

// Invocation is all that a command gets from the outside.
type Invocation struct {
	Args        []string // those after the command's name
	Stdout      io.Writer
	Stderr      io.Writer
	OutTerminal bool // Stdout is a terminal
	ErrTerminal bool // likewise
	Colour      bool // terminals are written to in colour

	// Configure reads the settings, once the command line was found right.
	Configure func() (*Settings, error)
}

// Settings are what the commands know of the program's.
type Settings struct {
	Names *oci.Names
	// Images reads a file with one image in a line.
	Images func(file string) ([]warm.Image, error)
	// Connect finds who answers: the admin listener server or, if that is empty,
	// whoever has the data directory, this process too.
	Connect func(ctx context.Context, server string) (*admin.Client, error)
}

const operatorHelp = `
It asks the server that ENTREPOT_ADMIN_LISTEN names, if that has the data
directory ENTREPOT_DATA, and otherwise opens the directory itself: run it as the
same user then.
` + askingHelp

// liveHelp is for what only a running server can do.
const liveHelp = `
It asks the server that ENTREPOT_ADMIN_LISTEN names, if that has the data
directory ENTREPOT_DATA, and needs it to run.
` + askingHelp

const askingHelp = `
  --server ADDRESS   ask this admin listener instead; ENTREPOT_ADMIN_TOKEN is
                     sent to it
  --json             write lines of JSON (so is done anyway where no terminal
                     reads it)
  --table            write a table, also where no terminal reads it

The exit code is 1 for what failed or was refused, 2 for a mistake in the
command line.
`

// The exit codes that are not 1.
const (
	Misuse = 2 // a mistake in the command line, of any command of the program
	damage = 3 // of what is held
)

// ExitError is an error with an exit code of its own.
type ExitError struct {
	Code int
	Text string
}

func (e ExitError) Error() string { return e.Text }

// operation is one of these commands at work.
type operation struct {
	in     Invocation
	name   string
	flags  *flag.FlagSet
	server string
	json   bool
	table  bool

	args     []string
	settings *Settings
	client   *admin.Client
}

func newOperation(in Invocation, name string) *operation {
	o := &operation{in: in, name: name, flags: flag.NewFlagSet(name, flag.ContinueOnError)}
	o.flags.SetOutput(io.Discard)
	o.flags.StringVar(&o.server, "server", "", "")
	o.flags.BoolVar(&o.json, "json", false, "")
	o.flags.BoolVar(&o.table, "table", false, "")
	return o
}

// boundedInt adds a flag for a number.
func (o *operation) boundedInt(to *int, name string, least, most int) {
	o.flags.Func(name, "", func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < least || n > most {
			return fmt.Errorf("want a number from %d to %d", least, most)
		}
		*to = n
		return nil
	})
}

// begin reads the command line and finds who answers. The caller ends it.
func (o *operation) begin(ctx context.Context, least, most int) (err error) {
	if o.args, err = ParseArgs(o.flags, o.in.Args); err != nil {
		return o.misused("%v", err)
	}
	switch {
	case len(o.args) < least:
		return o.misused("it needs a reference, such as alpine:3.20")
	case most == 0 && len(o.args) > 0:
		return o.misused("it takes no argument, and not %s", words.Quote(o.args[0]))
	case most > 0 && len(o.args) > most:
		return o.misused("it takes %d argument at most, and not %s (is a * not quoted?)", most, words.Quote(o.args[most]))
	case o.json && o.table:
		return o.misused("--json or --table, and not both")
	}
	o.json = !o.table && (o.json || !o.in.OutTerminal)
	if o.settings, err = o.in.Configure(); err != nil {
		return err
	}
	o.client, err = o.settings.Connect(ctx, o.server)
	if err != nil {
		return fmt.Errorf("%s: %w", o.name, err)
	}
	return nil
}

// ParseArgs reads flags that may stand before, between and behind the
// arguments.
func ParseArgs(flags *flag.FlagSet, all []string) (args []string, err error) {
	for rest := all; ; rest = flags.Args()[1:] {
		if err := flags.Parse(rest); err != nil {
			return nil, errors.New(strings.Replace(err.Error(), " -", " --", 1)) // package flag names them by one
		}
		if flags.NArg() == 0 {
			return args, nil
		}
		args = append(args, flags.Arg(0))
	}
}

func (o *operation) misused(format string, args ...any) error {
	return ExitError{Misuse, fmt.Sprintf("%s: %s: entrepot help %s", o.name, fmt.Sprintf(format, args...), o.name)}
}

// end gives the data directory back, if this process had it.
func (o *operation) end(err *error) {
	if o.client != nil {
		*err = errors.Join(*err, o.client.Close())
	}
}

// explain puts into a person's words what the admin API answered: what is wrong
// with the thing, and what to do about it.
func (o *operation) explain(err error, t admin.Target) error {
	known, ok := errors.AsType[*admin.Error](err)
	if !ok {
		return err
	}
	switch known.Code {
	case "PINNED":
		if t.All {
			return errors.New("some of it is pinned; entrepot pin lists what is, entrepot unpin comes first")
		}
		return fmt.Errorf("it is pinned; first: entrepot unpin %s", t)
	case "NOT_HELD":
		if o.name == "unpin" {
			return errors.New("there is no such pin; entrepot pin lists them")
		}
		return errors.New("nothing is held by this name; entrepot ls shows what is")
	case "NOT_RUNNING":
		if o.client.Unreached() == nil {
			return known
		}
		return fmt.Errorf("%w, and none is asked: %w; start one, or name one by --server", known, o.client.Unreached())
	case "BUSY":
		return fmt.Errorf("%w; try again when that is done", known)
	}
	return known
}

// each asks for a list and visits its items, decoded and raw.
func each[T any](ctx context.Context, o *operation, route string, query url.Values, visit func(T, json.RawMessage) error) error {
	_, err := listed(ctx, o, route, query, visit)
	return err
}

// listed is each with what is told behind the items.
func listed[T any](ctx context.Context, o *operation, route string, query url.Values, visit func(T, json.RawMessage) error) (json.RawMessage, error) {
	result, err := o.client.Get(ctx, route, query, &admin.Listener{Item: func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		return visit(v, raw)
	}})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.name, o.explain(err, admin.Target{}))
	}
	return result, nil
}

// do has something done, shows how far it is, and returns its result.
func do[T any](ctx context.Context, o *operation, method, route string, body any, show func(json.RawMessage)) (result T, err error) {
	l := &admin.Listener{Progress: show}
	var raw json.RawMessage
	if method == "GET" {
		raw, err = o.client.Get(ctx, route, nil, l)
	} else {
		raw, err = o.client.Post(ctx, route, body, l)
	}
	if err == nil {
		err = json.Unmarshal(raw, &result)
	}
	if err == nil && o.json {
		err = o.writeLine(raw)
	}
	return result, err
}

func (o *operation) writeLine(raw []byte) error {
	_, err := fmt.Fprintf(o.in.Stdout, "%s\n", raw)
	return err
}
