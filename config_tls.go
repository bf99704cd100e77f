package main

import (
	"entrepot/certs"
)

// The names of the settings of TLS, for messages.
const (
	tlsCertVar     = "ENTREPOT_TLS_CERT_FILE"
	tlsKeyVar      = "ENTREPOT_TLS_KEY_FILE"
	tlsPFXVar      = "ENTREPOT_TLS_PFX_FILE"
	tlsPasswordVar = "ENTREPOT_TLS_PFX_PASSWORD"
	tlsClientsVar  = "ENTREPOT_TLS_CLIENT_CA_FILE"
	plainVar       = "ENTREPOT_PLAIN_LISTEN"
)

// hasTLS reports whether the registry's listener speaks TLS.
func (c *Config) hasTLS() bool { return c.TLSCertFile != "" || c.TLSPFXFile != "" }

// certificates are the files of the server's certificate.
func (c *Config) certificates() certs.Files {
	return certs.Files{
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
	if c.TLSPFXPassword.IsSet() && c.TLSPFXFile == "" {
		found.add(tlsPasswordVar, "is set without %s: want both", tlsPFXVar)
	}
	if c.TLSClientAuth == "required" && c.TLSClientCAFile == "" {
		found.add("ENTREPOT_TLS_CLIENT_AUTH", "asks for certificates of clients, but not whose: want %s too", tlsClientsVar)
	}
	if !c.hasTLS() && len(*found) == before {
		if c.TLSClientCAFile != "" {
			found.add(tlsClientsVar, "has no meaning without TLS: want %s and %s, or %s", tlsCertVar, tlsKeyVar, tlsPFXVar)
		}
		if c.PlainListen != "" {
			found.add(plainVar, "is for a registry that speaks TLS on ENTREPOT_LISTEN, which this one does not: want a certificate, or that address alone")
		}
	}
	if len(*found) > before || !c.hasTLS() {
		return
	}
	if _, err := certs.Open(c.certificates()); err != nil {
		variable := tlsCertVar
		if c.TLSPFXFile != "" {
			variable = tlsPFXVar
		}
		found.add(variable, "%v", err)
	}
}
