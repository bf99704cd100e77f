package main

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// printConfig writes the effective value of every variable and where it came
// from. Secrets are masked by their type.
func printConfig(w io.Writer, c *Config) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "VARIABLE\tVALUE\tFROM")
	eachValue(c, func(name string, s setting, v any) {
		from, ok := c.sources[name]
		switch {
		case c.fitted[name]:
			from = "default, as far as ENTREPOT_HEADER_TIMEOUT allows"
		case !ok && s.preset != "":
			from = "default"
		case !ok:
			from = "-"
		}
		value := showValue(v)
		if value == "" {
			value = "-"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", name, value, from)
	})
	return table.Flush()
}

// showValue formats the field that v points to.
func showValue(v any) string {
	if s, ok := v.(fmt.Stringer); ok {
		return s.String()
	}
	return fmt.Sprint(reflect.ValueOf(v).Elem().Interface())
}

// settingsMarkdown is the README's table of all variables.
func settingsMarkdown() string {
	var b strings.Builder
	b.WriteString("| variable | default | meaning |\n| --- | --- | --- |\n")
	for _, s := range settings() {
		preset := ""
		if s.preset != "" {
			preset = "`" + s.preset + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", strings.Join(markdownNames(s), ", "), preset, s.meaning())
	}
	return b.String()
}

func markdownNames(s setting) []string {
	names := s.names()
	for i, name := range names {
		names[i] = "`" + name + "`"
	}
	return names
}

// printSettings writes the same for a terminal, whatever its width.
func printSettings(w io.Writer) error {
	var b strings.Builder
	for _, s := range settings() {
		b.WriteString("  " + strings.Join(s.names(), ", "))
		if s.preset != "" {
			b.WriteString(" (default " + s.preset + ")")
		}
		b.WriteByte('\n')
		fold(&b, s.meaning(), "      ")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// helpWidth is how wide the lines of help are.
const helpWidth = 80

// fold writes text in lines that begin with indent.
func fold(b *strings.Builder, text, indent string) {
	at := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case at == 0:
			b.WriteString(indent)
			at = len(indent)
		case at+1+utf8.RuneCountInString(word) > helpWidth:
			b.WriteString("\n" + indent)
			at = len(indent)
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += utf8.RuneCountInString(word)
	}
	b.WriteByte('\n')
}

// names are the variables that set s.
func (s setting) names() []string {
	if s.isSecret {
		return []string{s.name, s.name + fileSuffix}
	}
	return []string{s.name}
}

func (s setting) meaning() string {
	if s.empty == "" {
		return s.doc
	}
	return fmt.Sprintf("%s; empty: %s", s.doc, s.empty)
}
