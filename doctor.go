package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"entrepot/certs"
	"entrepot/operate"
	"entrepot/store"
	"entrepot/words"
)

const doctorHelp = `Usage: entrepot doctor [--json] [image...]

Looks at all that a server needs, as this machine and these settings have it:
the settings, the data directory, the addresses to listen on, the certificate,
and, for each upstream, its name, its TLS, its answer, its logins, the clock and
what is left of the quota. Images that are named are looked up too. It pulls
nothing and costs no quota; a server may be running meanwhile.

For what is wrong it says what to do. The exit code is that of the worst thing,
the first of its kind:

  10  settings         13  name look-up    16  a login
  11  data directory   14  no connection   17  a limit, or a spent quota
  12  an address       15  TLS             18  the clock
                                           19  an image
`

// ailment is a kind of thing that can be wrong, by the exit code it leads to.
type ailment int

const (
	badSettings ailment = iota + 10
	badDirectory
	badAddress
	badName
	badConnection
	badTLS
	badLogin
	badQuota
	badClock
	badImage
)

// finding is what came of one look.
type finding struct {
	Subject string `json:"subject"`          // "upstream docker.io"
	State   string `json:"state"`            // ok, warning, failed
	Detail  string `json:"detail"`           // what was seen
	Remedy  string `json:"remedy,omitempty"` // what to do
	Code    int    `json:"code,omitempty"`   // of the exit, where it failed
}

func well(subject, format string, args ...any) finding {
	return finding{Subject: subject, State: "ok", Detail: fmt.Sprintf(format, args...)}
}

func doubtful(subject, detail, remedy string) finding {
	return finding{Subject: subject, State: "warning", Detail: detail, Remedy: remedy}
}

func failed(what ailment, subject, detail, remedy string) finding {
	return finding{Subject: subject, State: "failed", Detail: detail, Remedy: remedy, Code: int(what)}
}

// doctor looks, tells what it sees as it sees it, and leads to an exit code.
func doctor(ctx context.Context, in invocation) error {
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	asJSON := flags.Bool("json", false, "")
	images, err := operate.ParseArgs(flags, in.args)
	if err != nil {
		return usageError{fmt.Sprintf("doctor: %v: entrepot help doctor", err)}
	}
	var worst finding
	wrong, last := 0, "" // remedy
	tell := func(f finding) {
		if f.State == "failed" {
			if wrong++; worst.Code == 0 || f.Code < worst.Code {
				worst = f
			}
		}
		again := f.Remedy != "" && f.Remedy == last && !*asJSON
		if last = f.Remedy; again {
			f.Remedy = "as above"
		}
		f.print(in.stdout, *asJSON)
	}
	examine(ctx, in, images, tell)
	if wrong > 0 {
		return operate.ExitError{Code: worst.Code, Text: fmt.Sprintf("doctor: %s not well", words.Count(wrong, "thing")+map[bool]string{true: " is", false: " are"}[wrong == 1])}
	}
	return ctx.Err()
}

func (f finding) print(w io.Writer, asJSON bool) {
	if asJSON {
		text, _ := json.Marshal(f)
		fmt.Fprintf(w, "%s\n", text)
		return
	}
	sign := map[string]string{"ok": "ok  ", "warning": "warn", "failed": "FAIL"}[f.State]
	fmt.Fprintf(w, "%s  %s: %s\n", sign, f.Subject, words.Printable(f.Detail))
	if f.Remedy != "" {
		fmt.Fprintf(w, "      -> %s\n", words.Printable(f.Remedy))
	}
}

// examine looks at one thing after the other, at the upstreams all at once.
func examine(ctx context.Context, in invocation, images []string, tell func(finding)) {
	cfg, found := readConfig(in.environ)
	for _, p := range found {
		remedy := "entrepot help config lists what can be set"
		if p.name == accessVar {
			remedy = "docs/operations.md, Rights, has all that such a file may hold"
		}
		tell(failed(badSettings, p.name, p.text, remedy))
	}
	if len(found) > 0 {
		return // what follows would be about other settings
	}
	for _, warning := range cfg.Warnings() {
		tell(doubtful("settings", warning, ""))
	}
	tell(well("settings", "no mistake; entrepot config shows what is in force"))
	tell(examineData(ctx, cfg))
	for _, one := range cfg.listeners() {
		tell(examineAddress(ctx, cfg, one))
	}
	if cfg.hasTLS() {
		tell(examineCertificate(cfg, time.Now()))
	}
	examineUpstreams(ctx, cfg, images, tell)
}

// examineData looks at the data directory without making one.
func examineData(ctx context.Context, cfg *Config) finding {
	subject, dir := "data directory "+cfg.dataPath(), cfg.dataPath()
	const remedy = "give it to the user that the server runs as, or set ENTREPOT_DATA"
	exists := true
	if _, err := os.Stat(filepath.Join(dir, "VERSION")); err != nil {
		exists = false
		var err error
		if dir, err = writableParent(dir); err != nil {
			return failed(badDirectory, subject, err.Error(), remedy)
		}
	}
	total, free, err := store.Space(dir)
	if err != nil {
		return failed(badDirectory, subject, err.Error(), remedy)
	}
	space := spaceText(total, free)
	text, cure := roomTrouble(cfg, total, free)
	switch {
	case !exists && free <= cfg.MinFree.Of(total):
		return failed(badDirectory, subject, text, cure)
	case text != "":
		return doubtful(subject, text, cure)
	case !exists:
		return well(subject, "it will be made; %s", space)
	}
	return examineHeld(ctx, cfg, subject, space)
}

// roomTrouble says what of a disk does not fit the settings, and what to do.
func roomTrouble(cfg *Config, total, free int64) (text, remedy string) {
	keep, space := cfg.MinFree.Of(total), spaceText(total, free)
	switch {
	case free <= keep:
		return fmt.Sprintf("%s, and %s are to be left alone: something new is kept only in the place of what is held", space, words.Bytes(keep)),
			"make room, or set ENTREPOT_MIN_FREE lower"
	case int64(cfg.CacheSize) > total-keep:
		return fmt.Sprintf("%s: ENTREPOT_CACHE_SIZE=%s is more than there is beside ENTREPOT_MIN_FREE, which then decides", space, cfg.CacheSize),
			fmt.Sprintf("set it to %s or less", words.Bytes(total-keep))
	}
	return "", ""
}

func spaceText(total, free int64) string {
	return fmt.Sprintf("%s of %s free", words.Bytes(free), words.Bytes(total))
}

// examineHeld opens a data directory as a start does, unless a server has it.
func examineHeld(ctx context.Context, cfg *Config, subject, space string) finding {
	token, err := cfg.AdminToken.Value()
	if err != nil {
		return failed(badSettings, "ENTREPOT_ADMIN_TOKEN", err.Error(), "")
	}
	if running, _ := connectServer(ctx, cfg, token); running != nil {
		return well(subject, "the server at %s has it; %s", running.Where(), space)
	}
	disk, err := store.Open(ctx, store.Config{Dir: string(cfg.Data), LockWait: 1})
	if err != nil {
		return failed(badDirectory, subject, err.Error(), "end who has it, or set ENTREPOT_DATA")
	}
	defer func() { _ = disk.Close() }()
	return well(subject, "it can be opened; %s", space)
}

// writableParent is the directory that exists above dir, if one can be made in it.
func writableParent(dir string) (string, error) {
	for {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return "", fmt.Errorf("%s is not a directory", dir)
		case err == nil:
			probe, err := os.MkdirTemp(dir, ".entrepot-doctor")
			if err != nil {
				return "", fmt.Errorf("%s: %w", dir, errors.Unwrap(err))
			}
			return dir, os.Remove(probe)
		case !errors.Is(err, os.ErrNotExist) || filepath.Dir(dir) == dir:
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

// examineAddress listens for a moment. Who else does may be the server itself.
func examineAddress(ctx context.Context, cfg *Config, one listenSetting) finding {
	subject := one.variable + "=" + string(one.address)
	l, err := listen(ctx, one.variable, one.address)
	if err == nil {
		l.Close()
		return well(subject, "free")
	}
	host, port := one.address.reachable()
	address := net.JoinHostPort(host, port)
	var answer error
	switch one.variable {
	case "ENTREPOT_LISTEN":
		answer = askRegistry(ctx, cfg, address)
	case "ENTREPOT_METRICS_LISTEN":
		answer = askHealth(ctx, "http://"+address+"/readyz")
	default:
		answer = askHealth(ctx, "http://"+address+"/healthz")
	}
	if answer == nil {
		return well(subject, "a server answers there, and says that it is well")
	}
	return failed(badAddress, subject, strings.TrimPrefix(err.Error(), one.variable+": "), "end who has it, or set another address")
}

// examineCertificate looks at when the server's certificate ends.
func examineCertificate(cfg *Config, now time.Time) finding {
	const remedy = "renew it: a running server reads the new files by itself"
	kept, err := certs.Open(cfg.certificates(nil))
	if err != nil {
		return failed(badTLS, "certificate", err.Error(), remedy)
	}
	ends := kept.Ends()
	if ends.IsZero() {
		return well("certificate", "for %s, by ACME: asked for when a client comes", strings.Join(kept.Names(), ", "))
	}
	detail := fmt.Sprintf("for %s, until %s", strings.Join(kept.Names(), ", "), ends.Format(time.DateOnly))
	switch {
	case now.After(ends):
		return failed(badTLS, "certificate", detail+", which is past", remedy)
	case now.Add(kept.Notice()).After(ends):
		return doubtful("certificate", detail, remedy)
	}
	return well("certificate", "%s", detail)
}
