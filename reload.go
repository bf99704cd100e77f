package main

import (
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"entrepot/admin"
	"entrepot/upstream"

	"github.com/rs/zerolog"
)

// reloadEvery is how often files are looked at: what was changed is in force
// that much later. A look is one stat for each file.
const reloadEvery = time.Second

// settleTime is how old a change has to be before it is read. htpasswd and
// editors write files in place: in between they are empty, which is a file of
// users that has none.
const settleTime = 100 * time.Millisecond

// reloadable is what is read from files, and again when they change.
type reloadable struct {
	what  string          // for the log
	paths func() []string // to look at
	load  func() error
	seen  []os.FileInfo
	told  string // the error that was logged last; empty after a success, and at SIGHUP

	mu    sync.Mutex // guards what follows; it is written by the reloader's goroutine alone
	err   error      // of the last reading
	since time.Time  // when reading first failed; zero after a success
}

// reloader looks after what is reloadable. Where reading fails, what was read
// before stays, and it is tried again each time: two files that belong
// together are seldom written at once.
type reloader struct {
	log     zerolog.Logger
	hangups <-chan os.Signal // those that ask for all to be read again
	all     []*reloadable
	named   func(paths []string) []string // the settings that name files, NAME=PATH
	also    []func(now time.Time)         // is done with each look
	stop    chan struct{}
	work    sync.WaitGroup
}

func newReloader(log zerolog.Logger, hangups <-chan os.Signal, named func(paths []string) []string) *reloader {
	return &reloader{log: log, hangups: hangups, named: named, stop: make(chan struct{})}
}

// catchHangups keeps SIGHUP from ending the process, from now until its exit:
// who sends it wants files read again, and cannot know whether we have got that
// far, or are about to end. One that nobody has taken yet is remembered.
func catchHangups() <-chan os.Signal {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	return hangups
}

// add is for before start. What paths hold has been read just now.
func (r *reloader) add(what string, load func() error, paths ...string) {
	r.addChanging(what, load, func() []string { return paths })
}

// addChanging is add for files that name further ones.
func (r *reloader) addChanging(what string, load func() error, paths func() []string) {
	r.all = append(r.all, &reloadable{what: what, paths: paths, load: load, seen: look(paths())})
}

// addCAs adds the authorities of upstreams and their mirrors.
func (r *reloader) addCAs(c *Config, upstreams *upstream.Set) {
	for _, u := range c.UpstreamSettings() {
		if paths := u.caFiles(); len(paths) > 0 {
			r.add("authorities of "+u.Name, upstreams.Client(u.Name).ReloadCAs, paths...)
		}
	}
}

// addSecrets adds the files of secrets, which are read when they are used.
func (r *reloader) addSecrets(c *Config) {
	eachValue(c, func(name string, _ setting, v any) {
		if secret, ok := v.(*Secret); ok && secret.path() != "" {
			r.add(name+fileSuffix, func() error { _, err := secret.Value(); return err }, secret.path())
		}
	})
}

// start looks at the files each second, and reads them all at SIGHUP, also one
// that came before.
func (r *reloader) start() {
	r.work.Go(func() {
		ticks := time.NewTicker(reloadEvery)
		defer ticks.Stop()
		for {
			select {
			case <-r.stop:
				return
			case <-ticks.C:
				r.round(time.Now())
			case <-r.hangups:
				r.readAll()
			}
		}
	})
}

func (r *reloader) close() {
	close(r.stop)
	r.work.Wait()
}

func (r *reloader) round(now time.Time) {
	for _, one := range r.all {
		one.refresh(r.log, now)
	}
	for _, do := range r.also {
		do(now)
	}
}

// readAll reads also what looks unchanged, as somebody wants who asks for it, and
// tells so. The warm list is read when it is used.
func (r *reloader) readAll() {
	r.log.Info().Int("things", len(r.all)).Msg("SIGHUP: reading files again; settings are environment variables, and take a restart")
	for _, one := range r.all {
		one.told = ""
		one.read(r.log, look(one.paths()))
	}
}

// unread are the things that cannot be read as they are now.
func (r *reloader) unread() (all []admin.Unread) {
	for _, one := range r.all {
		one.mu.Lock()
		err, since := one.err, one.since
		one.mu.Unlock()
		if err != nil {
			all = append(all, admin.Unread{What: one.what, Error: err.Error(), Settings: r.named(one.paths()), Since: since})
		}
	}
	return all
}

// refresh looks before it reads: a change that comes while it reads is then
// seen the next time, and so is one that has only just come.
func (one *reloadable) refresh(log zerolog.Logger, now time.Time) {
	seen := look(one.paths())
	if one.err == nil && slices.EqualFunc(seen, one.seen, sameFile) {
		return
	}
	if !slices.ContainsFunc(seen, func(file os.FileInfo) bool { return isUnsettled(file, now) }) {
		one.read(log, seen)
	}
}

// isUnsettled reports whether a file is being written, as far as its time can
// tell; one that lies in the future cannot.
func isUnsettled(file os.FileInfo, now time.Time) bool {
	return file != nil && now.Sub(file.ModTime()).Abs() < settleTime
}

func (one *reloadable) read(log zerolog.Logger, seen []os.FileInfo) {
	changed := !slices.EqualFunc(seen, one.seen, sameFile)
	err := one.load()
	one.seen = seen
	one.note(err)
	switch {
	case err == nil:
		one.told = ""
		log.Info().Str("what", one.what).Strs("files", one.paths()).Bool("changed", changed).Msg("read again")
	case err.Error() != one.told:
		one.told = err.Error()
		log.Warn().Str("what", one.what).Strs("files", one.paths()).Err(err).Msg("cannot be read: what was read before stays")
	}
}

// note keeps what came of the last reading.
func (one *reloadable) note(err error) {
	one.mu.Lock()
	defer one.mu.Unlock()
	switch {
	case err == nil:
		one.since = time.Time{}
	case one.err == nil:
		one.since = time.Now()
	}
	one.err = err
}

// look is what the file system says of files; nil for one that it does not have.
func look(paths []string) []os.FileInfo {
	all := make([]os.FileInfo, len(paths))
	for i, path := range paths {
		all[i], _ = os.Stat(path)
	}
	return all
}

// sameFile reports whether nothing was written since. A file that another one
// replaced is not the same, though it may be as old and as large.
func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// expiryRepeat is how often it is warned that a certificate ends.
const expiryRepeat = 24 * time.Hour

// expiryWarning warns once a day, from notice before ends on.
func expiryWarning(log zerolog.Logger, ends func() time.Time, notice func() time.Duration) func(now time.Time) {
	var last time.Time
	return func(now time.Time) {
		end := ends()
		left := end.Sub(now)
		if end.IsZero() || left > notice() || now.Sub(last) < expiryRepeat {
			return
		}
		last = now
		message := "the TLS certificate ends soon"
		if left <= 0 {
			message = "the TLS certificate has ended: clients refuse it"
		}
		log.Warn().Time("ends", end).Float64("days_left", max(0, left.Hours()/24)).Msg(message)
	}
}
