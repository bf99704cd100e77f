//go:build !linux

package proxy

import (
	"context"
	"net"
)

// ListenConfig makes the listeners that clients connect to.
func ListenConfig() net.ListenConfig { return net.ListenConfig{} }

// ConnContext is for http.Server.ConnContext. It does something on Linux only.
func ConnContext(ctx context.Context, _ net.Conn) context.Context { return ctx }

// A line is a connection whose way of sending can be chosen: none here.
type line struct{}

func lineOf(context.Context) *line { return nil }

func (*line) cork() bool { return false }

func (*line) uncork() {}
