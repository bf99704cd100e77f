//go:build !linux

package proxy

import (
	"context"
	"net"
)

// ListenConfig makes the listeners that clients connect to.
func ListenConfig() net.ListenConfig { return net.ListenConfig{} }

// ConnContext lets answers know the connection that they go out on. It is for
// http.Server.ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if tcp := tcpOf(c); tcp != nil {
		return &line{Context: ctx, conn: tcp}
	}
	return ctx
}

// How a large answer is sent can be chosen on Linux only.

func (*line) widen() {}

func (*line) cork() bool { return false }

func (*line) uncork() {}
