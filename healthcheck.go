package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

const healthcheckHelp = `Asks /healthz of the address in ENTREPOT_LISTEN, on this machine, over TLS if
that has it, and waits five seconds at most. The exit code is 0 if the server
answered that it is well, and 1 otherwise: for containers without a shell.
`

const healthcheckTimeout = 5 * time.Second

// healthcheck looks only at the listener's address. The rest of the environment
// is not its business: a secret whose file went away after the start does not
// make the server ill.
func healthcheck(ctx context.Context, in invocation) error {
	if err := in.noArguments("healthcheck"); err != nil {
		return err
	}
	c, found := readConfig(in.environ)
	for _, p := range found {
		if p.name == "ENTREPOT_LISTEN" {
			return problems{p}
		}
	}
	host, port := c.Listen.reachable()
	if port == "0" {
		return fmt.Errorf("healthcheck: ENTREPOT_LISTEN=%s leaves the port open, so there is none to ask", c.Listen)
	}
	return askRegistry(ctx, c, net.JoinHostPort(host, port))
}

// askRegistry asks the registry's listener, in the way that c says, whether it is
// well.
func askRegistry(ctx context.Context, c *Config, address string) error {
	if c.TLSClientAuth == "required" {
		return shakeHands(ctx, address)
	}
	scheme := "http"
	if c.hasTLS() {
		scheme = "https"
	}
	return askHealth(ctx, scheme+"://"+address+"/healthz")
}

// anyCertificate is for asking ourselves: the certificate is for the names that
// clients have for us, and nothing is sent that others may not have.
func anyCertificate() *tls.Config { return &tls.Config{InsecureSkipVerify: true} } //nolint:gosec // see above

// shakeHands is all that can be done without a client's certificate: the server
// answers.
func shakeHands(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: anyCertificate()}).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	return conn.Close()
}

func askHealth(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: anyCertificate()}, // and no proxy
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10)); err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("healthcheck: %s answered %s", url, resp.Status)
	}
	return nil
}

// reachable is an address by which this machine reaches a listener.
func (a Address) reachable() (host, port string) {
	host, port = a.split()
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "":
		host = "127.0.0.1"
	case err == nil && ip.IsUnspecified() && ip.Is4():
		host = "127.0.0.1"
	case err == nil && ip.IsUnspecified():
		host = "::1"
	}
	return host, port
}
