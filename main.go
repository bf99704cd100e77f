// Entrepôt is a pull-through cache for container registries: one server between
// a fleet and the registries that it pulls from.
//
// This package puts the program together. Start with serve.go, which builds the
// stack; config.go has all that can be set.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"entrepot/operate"
	"entrepot/words"

	"github.com/rs/zerolog"
)

func main() {
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00" // its default has no fractions
	err := run(untilSignal(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "entrepot: interrupted")
	case err != nil:
		fmt.Fprintf(os.Stderr, "entrepot: %v\n", err)
	}
	os.Exit(exitCode(err))
}

// untilSignal ends with the first signal to end. The second one ends the program
// there and then.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		fmt.Fprintln(os.Stderr, "entrepot: a second signal: ending at once")
		os.Exit(1)
	}()
	return ctx
}

// command is one thing the program can be told to do.
type command struct {
	name    string
	summary string // one line in the list of commands
	help    string // what `entrepot help <name>` adds
	run     func(ctx context.Context, in invocation) error
}

// invocation is all that a command gets from the outside.
type invocation struct {
	args    []string // those after the command's name
	environ []string
	stdout  io.Writer
	stderr  io.Writer
}

// commands are what the program can do, in the order of the help text.
func commands() []command {
	return slices.Concat([]command{
		{"serve", "serve the registry until SIGTERM; also without a command", serveHelp, serve},
	}, operatorCommands(), []command{
		{"client", "print what makes docker, containerd and others use this server", clientHelp, printClient},
		{"doctor", "look at all that a server needs, and say what to mend", doctorHelp, doctor},
		{"config", "show the effective configuration, and where each value came from", configHelp, showConfig},
		{"healthcheck", "ask the running server whether it is well; the exit code tells", healthcheckHelp, healthcheck},
		{"version", "show the version", "", showVersion},
		{"help", "show this text, or a command's: entrepot help <command>", "", help},
	})
}

// run does what args say. The error is for the person who called; exitCode
// gives it a number.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	in := invocation{args, environ, stdout, stderr}
	if len(args) == 0 {
		return serve(ctx, in)
	}
	name := args[0]
	in.args = args[1:]
	switch {
	case isHelpFlag(name):
		name = "help"
	case name == "-version" || name == "--version":
		name = "version"
	}
	c, ok := findCommand(name)
	switch {
	case !ok && strings.HasPrefix(name, "-"):
		return usageError{fmt.Sprintf("unknown flag %s: settings are environment variables, see entrepot help config", words.Quote(name))}
	case !ok:
		return usageError{unknownCommandText(name)}
	case slices.ContainsFunc(in.args, isHelpFlag):
		in.args = []string{name}
		return help(ctx, in)
	}
	return c.run(ctx, in)
}

func isHelpFlag(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

func findCommand(name string) (command, bool) {
	all := commands()
	i := slices.IndexFunc(all, func(c command) bool { return c.name == name })
	if i < 0 {
		return command{}, false
	}
	return all[i], true
}

func unknownCommandText(name string) string {
	text := "unknown command " + words.Quote(name)
	for _, c := range commands() {
		if len(name) <= 80 && words.Distance(name, c.name) <= 2 {
			return text + ": did you mean " + c.name + "?"
		}
	}
	return text + ": entrepot help lists them"
}

// noArguments is for commands that take none.
func (in invocation) noArguments(name string) error {
	if len(in.args) == 0 {
		return nil
	}
	return usageError{fmt.Sprintf("%s takes no argument, and not %s: entrepot help %s", name, words.Quote(in.args[0]), name)}
}

// usageError is a mistake in the command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// exitCode is 0 for success, 2 for a mistake in the command line, 1 for all
// else, unless a command gives a number of its own a meaning.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return operate.Misuse
	}
	if e, ok := errors.AsType[operate.ExitError](err); ok {
		return e.Code
	}
	return 1
}

const helpHead = `Entrepôt is a pull-through cache for container registries: it stands between
your machines and Docker Hub, ghcr.io, quay.io and the like, fetches each image
once, keeps it on disk, and serves it from there, also when the registry is down
or limits you.

Usage: entrepot [command]

Commands:
`

const helpTail = `
Configuration is by environment variables, all called ENTREPOT_...; none is
needed. "entrepot help config" lists them, "entrepot config" shows the values in
force.

Examples:
  entrepot
      serve on :5000 and keep images in ./data
  ENTREPOT_DATA=/var/lib/entrepot ENTREPOT_CACHE_SIZE=200GiB entrepot
      keep them elsewhere, and at most so many
  ENTREPOT_DOCKERHUB_USERNAME=me \
    ENTREPOT_DOCKERHUB_PASSWORD_FILE=hub.token entrepot
      pull from Docker Hub with your own account and its higher limits
  docker pull localhost:5000/library/alpine
  docker pull localhost:5000/mcr.microsoft.com/dotnet/runtime:9.0
      pull through the cache
`

const configHelp = `Prints every variable with its value and where that came from: the default, the
environment, or a file. Secrets are masked. Fails as a start would, with all
problems at once. The variables are:

`

func help(_ context.Context, in invocation) error {
	if len(in.args) > 1 {
		return usageError{"help takes one command at most"}
	}
	if len(in.args) == 1 {
		return helpCommand(in.stdout, in.args[0])
	}
	fmt.Fprint(in.stdout, helpHead)
	table := tabwriter.NewWriter(in.stdout, 0, 0, 3, ' ', 0)
	for _, c := range commands() {
		fmt.Fprintf(table, "  %s\t%s\n", c.name, c.summary)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(in.stdout, helpTail)
	return err
}

func helpCommand(w io.Writer, name string) error {
	c, ok := findCommand(name)
	if !ok {
		return usageError{unknownCommandText(name)}
	}
	var title strings.Builder
	fold(&title, fmt.Sprintf("entrepot %s: %s.", c.name, c.summary), "")
	fmt.Fprint(w, title.String())
	if c.help != "" {
		fmt.Fprintf(w, "\n%s", c.help)
	}
	if c.name == "config" {
		return printSettings(w)
	}
	return nil
}

func showConfig(_ context.Context, in invocation) error {
	if err := in.noArguments("config"); err != nil {
		return err
	}
	c, err := loadConfig(in.environ)
	if err != nil {
		return err
	}
	return printConfig(in.stdout, c)
}
