package proxy

import (
	"context"
	"errors"
	"sync"
	"time"
)

// A patience is the context in which a source is asked. Until settle it ends
// with the request or at the deadline for the answer's headers, whichever comes
// first; after settle only with the request, since a body may take as long as
// it makes progress.
//
// It costs nothing until somebody waits: most answers are hits, and those need
// neither a timer nor a channel.
type patience struct {
	request  context.Context //nolint:containedctx // a patience is a context
	server   context.Context //nolint:containedctx // ends all requests; nil where request does as well
	deadline time.Time

	mu      sync.Mutex      // guards what follows
	waiting context.Context //nolint:containedctx // what Done has made
	cancel  context.CancelCauseFunc
	leave   func() bool // takes cancel off server
	timer   *time.Timer
	settled bool
	expired bool
}

func (p *patience) init(request, server context.Context, deadline time.Time) {
	p.request, p.server, p.deadline = request, server, deadline
}

// Done makes the timer and the channel at the first call.
func (p *patience) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		p.waiting, p.cancel = context.WithCancelCause(p.request)
		if p.server != nil {
			cancel := p.cancel
			p.leave = context.AfterFunc(p.server, func() { cancel(context.Canceled) })
		}
		if !p.settled {
			p.timer = time.AfterFunc(time.Until(p.deadline), p.expire)
		}
	}
	return p.waiting.Done()
}

// Err does not look at the clock: whoever works without waiting is nearly done.
func (p *patience) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.expired:
		return context.DeadlineExceeded
	case p.waiting != nil:
		return p.waiting.Err()
	}
	return p.request.Err()
}

// Deadline is that of the headers, while they are not out.
func (p *patience) Deadline() (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.settled {
		return p.request.Deadline()
	}
	return p.deadline, true
}

// Value looks in the context whose channel Done returns, so that package
// context finds it and ties children to it without a goroutine.
func (p *patience) Value(key any) any {
	p.mu.Lock()
	ctx := p.waiting
	p.mu.Unlock()
	if ctx == nil {
		ctx = p.request
	}
	return ctx.Value(key)
}

func (p *patience) expire() {
	p.mu.Lock()
	if p.settled {
		p.mu.Unlock()
		return
	}
	p.expired = true
	p.mu.Unlock()
	p.cancel(context.DeadlineExceeded) // set before the timer was made; it runs children, so not under the lock
}

// settle takes the deadline away. It reports false if that came too late: the
// context has ended, and whatever was opened in it is dead.
func (p *patience) settle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settled = true
	if p.timer != nil {
		p.timer.Stop()
	}
	return !p.expired
}

// hasExpired reports whether the deadline ended the context.
func (p *patience) hasExpired() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.expired
}

// isStopped reports whether the server has ended the request, and not its client.
func (p *patience) isStopped() bool {
	server := p.server
	if server == nil {
		server = p.request
	}
	return errors.Is(context.Cause(server), ErrStopping)
}

// end releases what waiting has made, and reports whether it had made nothing:
// then nobody was ever told of the context's end, and nobody has kept it.
func (p *patience) end() (unused bool) {
	p.mu.Lock()
	p.settled = true
	if p.timer != nil {
		p.timer.Stop()
	}
	cancel, leave := p.cancel, p.leave
	p.mu.Unlock()
	if leave != nil {
		leave()
	}
	if cancel != nil {
		cancel(nil)
	}
	return cancel == nil
}
