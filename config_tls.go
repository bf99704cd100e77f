package main

import (
	"net/netip"
	"path/filepath"
	"strings"

	"entrepot/certs"
)

// The names of the settings of TLS, for messages.
const (
	tlsCertVar     = "ENTREPOT_TLS_CERT_FILE"
	tlsKeyVar      = "ENTREPOT_TLS_KEY_FILE"
	tlsPFXVar      = "ENTREPOT_TLS_PFX_FILE"
	tlsPasswordVar = "ENTREPOT_TLS_PFX_PASSWORD"
	tlsClientsVar  = "ENTREPOT_TLS_CLIENT_CA_FILE"
	tlsACMEVar     = "ENTREPOT_TLS_ACME_DOMAINS"
	plainVar       = "ENTREPOT_PLAIN_LISTEN"
)

// hasTLS reports whether the registry's listener speaks TLS.
func (c *Config) hasTLS() bool {
	return c.TLSCertFile != "" || c.TLSPFXFile != "" || len(c.TLSACMEDomains) > 0
}

// acmeDir keeps what an authority gave us, below the data directory.
const acmeDir = "state/acme"

// certificates says where the server's certificate comes from. warn hears what
// goes wrong with an authority.
func (c *Config) certificates(warn func(error)) certs.Files {
	var authority *certs.ACME
	if len(c.TLSACMEDomains) > 0 {
		authority = &certs.ACME{
			Domains: c.TLSACMEDomains, Email: string(c.TLSACMEEmail), Directory: string(c.TLSACMEDirectory), CAs: string(c.TLSACMECAFile),
			Dir: filepath.Join(string(c.Data), acmeDir), Proxy: c.Proxy(), Warn: warn,
		}
	}
	return certs.Files{
		ACME: authority,
		Cert: string(c.TLSCertFile), Key: string(c.TLSKeyFile), PFX: string(c.TLSPFXFile), PFXPassword: c.TLSPFXPassword.Value,
		ClientCAs: string(c.TLSClientCAFile), RequireClient: c.TLSClientAuth == "required",
		ReadFile: readSmallFile,
	}
}

// checkTLS finds out whether the files that are named make a certificate.
func (c *Config) checkTLS(found *problems) {
	if found.concern("ENTREPOT_TLS_") {
		return
	}
	before := len(*found)
	if c.TLSCertFile != "" && c.TLSKeyFile == "" {
		found.add(tlsCertVar, "is set without %s: want both", tlsKeyVar)
	}
	if c.TLSKeyFile != "" && c.TLSCertFile == "" {
		found.add(tlsKeyVar, "is set without %s: want both", tlsCertVar)
	}
	if c.TLSPFXFile != "" && c.TLSCertFile != "" {
		found.add(tlsPFXVar, "is set, and %s as well: want one of them", tlsCertVar)
	}
	if len(c.TLSACMEDomains) > 0 && (c.TLSPFXFile != "" || c.TLSCertFile != "") {
		found.add(tlsACMEVar, "is set, and a file of a certificate as well: want one of them")
	}
	for _, domain := range c.TLSACMEDomains {
		if _, err := netip.ParseAddr(domain); err == nil || strings.Contains(domain, ":") || !strings.Contains(domain, ".") {
			found.add(tlsACMEVar, "%s is no name that an authority knows: want names with a dot and without a port, such as cache.example", domain)
		}
	}
	if len(c.TLSACMEDomains) == 0 && (c.TLSACMEEmail != "" || c.TLSACMEDirectory != "" || c.TLSACMECAFile != "") {
		found.add(tlsACMEVar, "is not set, but others of ENTREPOT_TLS_ACME_ are: want the names to get a certificate for")
	}
	if c.TLSPFXPassword.IsSet() && c.TLSPFXFile == "" {
		found.add(tlsPasswordVar, "is set without %s: want both", tlsPFXVar)
	}
	if c.TLSClientAuth == "required" && c.TLSClientCAFile == "" {
		found.add("ENTREPOT_TLS_CLIENT_AUTH", "asks for certificates of clients, but not whose: want %s too", tlsClientsVar)
	}
	if !c.hasTLS() && len(*found) == before {
		if c.TLSClientCAFile != "" {
			found.add(tlsClientsVar, "has no meaning without TLS: want %s and %s, %s or %s", tlsCertVar, tlsKeyVar, tlsPFXVar, tlsACMEVar)
		}
		if c.PlainListen != "" {
			found.add(plainVar, "is for a registry that speaks TLS on ENTREPOT_LISTEN, which this one does not: want a certificate, or that address alone")
		}
	}
	if len(*found) > before || !c.hasTLS() {
		return
	}
	if _, err := certs.Open(c.certificates(nil)); err != nil {
		variable := tlsCertVar
		switch {
		case c.TLSPFXFile != "":
			variable = tlsPFXVar
		case len(c.TLSACMEDomains) > 0:
			variable = tlsACMEVar
		}
		found.add(variable, "%v", err)
	}
}
