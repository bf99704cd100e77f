package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"entrepot/words"
)

const (
	ourPrefix  = "ENTREPOT_"
	fileSuffix = "_FILE"
	// itself is the key of what a list's number alone stands for, as in
	// ENTREPOT_UPSTREAM_0_URL_0. The library only knows elements by what follows
	// their number, so it is shown that variable under a longer name.
	itself = "ITSELF"
)

// placeholders stand for the numbers of lists in a setting's name, the outer
// list's first.
var placeholders = [...]string{"<n>", "<m>"}

// setting is one variable as Config declares it.
type setting struct {
	name     string // ENTREPOT_UPSTREAM_<n>_URL in a list
	isItself bool   // it is what the number of a list stands for
	preset   string // the default; empty for none
	empty    string // what an empty value means; empty: it is an error
	doc      string
	alias    string // another spelling, which wins
	isSecret bool   // may come from a file, is never shown
}

func newSetting(name string, isItself bool, f reflect.StructField) setting {
	return setting{
		name: name, isItself: isItself, preset: f.Tag.Get("envDefault"), empty: f.Tag.Get("empty"),
		doc: f.Tag.Get("doc"), alias: f.Tag.Get("alias"),
		isSecret: f.Type == reflect.TypeFor[Secret](),
	}
}

// settings are all variables, in the order of Config.
func settings() []setting {
	var one Config
	fillLists(reflect.ValueOf(&one).Elem())
	var all []setting
	eachValue(&one, func(_ string, s setting, _ any) { all = append(all, s) })
	return all
}

// fillLists gives every list of structs one element.
func fillLists(v reflect.Value) {
	for f, field := range v.Fields() {
		if _, ok := f.Tag.Lookup("envPrefix"); ok {
			field.Set(reflect.MakeSlice(f.Type, 1, 1))
			fillLists(field.Index(0))
		}
	}
}

// eachValue visits every setting of c: its name with the list's number in it,
// and a pointer to its field.
func eachValue(c *Config, visit func(name string, s setting, v any)) {
	walkValues(reflect.ValueOf(c).Elem(), "", "", 0, visit)
}

// namesOfFiles are the settings that name some of these files, as NAME=PATH.
func (c *Config) namesOfFiles(paths []string) (all []string) {
	eachValue(c, func(name string, _ setting, v any) {
		path := ""
		switch v := v.(type) {
		case *File:
			path = string(*v)
		case *CAFile:
			path = v.path
		case *Secret:
			name, path = name+fileSuffix, v.path()
		}
		if path != "" && slices.Contains(paths, path) {
			all = append(all, name+"="+path)
		}
	})
	return all
}

func walkValues(v reflect.Value, name, pattern string, depth int, visit func(string, setting, any)) {
	for f, field := range v.Fields() {
		if key, ok := f.Tag.Lookup("env"); ok {
			visit(join(name, key), newSetting(join(pattern, key), key == itself, f), field.Addr().Interface())
		}
		if list, ok := f.Tag.Lookup("envPrefix"); ok {
			for i := range field.Len() {
				walkValues(field.Index(i), name+list+strconv.Itoa(i)+"_", pattern+list+placeholders[depth]+"_", depth+1, visit)
			}
		}
	}
}

// join is the name of a key below a prefix.
func join(prefix, key string) string {
	if key == itself {
		return strings.TrimSuffix(prefix, "_")
	}
	return prefix + key
}

// numbered puts something in the place of each number in a setting's name.
func numbered(pattern string, number func(i int) string) string {
	for i, p := range placeholders {
		pattern = strings.Replace(pattern, p, number(i), 1)
	}
	return pattern
}

// libraryName is the name under which the library knows a variable that sets s.
func (s setting) libraryName(name string) string {
	if s.isItself {
		return name + "_" + itself
	}
	return name
}

func zero(v any) { reflect.ValueOf(v).Elem().SetZero() }

// variable is one setting as the environment has it.
type variable struct {
	of     setting
	isSet  bool // and well formed
	text   string
	file   string // set: the value is secret, read from there
	secret Secret
}

// settingVars picks our variables out of the environment, checks each, and adds
// what is wrong to found. The keys are names without _FILE.
func settingVars(environ map[string]string, found *problems) map[string]variable {
	vars := map[string]variable{}
	all := settings()
	useAliases(environ, all)
	lists := map[string]map[int]string{} // a list's prefix: number: one of its variables
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		s, base, numbers, ok := findSetting(all, name)
		if !ok {
			if isOurs(name) {
				found.add(printableName(name), "%s", unknownText(all, name, environ[name]))
			}
			continue
		}
		for _, n := range numbers {
			if lists[n.list] == nil {
				lists[n.list] = map[int]string{}
			}
			lists[n.list][n.number] = name
		}
		if _, both := environ[base]; both && base != name {
			found.add(name, "is set, and %s as well: want one of them", base)
			continue
		}
		v := readVariable(s, name, base != name, environ[name], found)
		v.of = s
		vars[base] = v
	}
	for list, numbers := range lists {
		checkGap(list, numbers, found)
	}
	return vars
}

// useAliases lets a lower-case spelling win where it says something, as it does
// for the library that uses these values.
func useAliases(environ map[string]string, all []setting) {
	for _, s := range all {
		if v := environ[s.alias]; s.alias != "" && v != "" {
			environ[s.name] = v
		}
	}
}

func readVariable(s setting, name string, isFile bool, text string, found *problems) variable {
	var secret Secret
	var err error
	switch {
	case text == "" && (s.empty == "" || isFile):
		found.add(name, "is empty: %s", wantWhenEmpty(s, isFile))
		return variable{}
	case isFile:
		if secret, err = newSecretFile(text); err == nil {
			return variable{isSet: true, text: text, file: text, secret: secret}
		}
	case text != "":
		err = parseAlone(s, text)
	}
	if err != nil {
		found.add(name, "%v", err)
		return variable{}
	}
	return variable{isSet: true, text: text}
}

func wantWhenEmpty(s setting, isFile bool) string {
	switch {
	case isFile:
		return "want the path of a file, or no such variable"
	case s.preset != "":
		return fmt.Sprintf("want a value, or no such variable for the default, %s", s.preset)
	}
	return "want a value, or no such variable"
}

// isOurs reports whether a variable is meant for this program. For a Service
// called entrepot Kubernetes makes variables that are not. (Names that differ
// in case are ours too, and misspelt.)
func isOurs(name string) bool {
	if name == "ENTREPOT_PORT" || strings.HasPrefix(name, "ENTREPOT_PORT_") || strings.HasPrefix(name, "ENTREPOT_SERVICE_") {
		return false
	}
	return len(name) >= len(ourPrefix) && strings.EqualFold(name[:len(ourPrefix)], ourPrefix)
}

// findSetting is the setting that a variable sets, the variable's name without
// _FILE, and its place in lists.
func findSetting(all []setting, name string) (s setting, base string, numbers []listNumber, ok bool) {
	for _, s := range all {
		if numbers, ok := matchName(s.name, name); ok {
			return s, name, numbers, true
		}
		if base, isFile := strings.CutSuffix(name, fileSuffix); s.isSecret && isFile {
			if numbers, ok := matchName(s.name, base); ok {
				return s, base, numbers, true
			}
		}
	}
	return setting{}, "", nil, false
}

// listNumber is a number in a name, and what stands before it.
type listNumber struct {
	list   string
	number int
}

func matchName(pattern, name string) (numbers []listNumber, ok bool) {
	done := 0
	for depth := 0; ; depth++ {
		before, after, isList := pattern, "", false
		if depth < len(placeholders) {
			before, after, isList = strings.Cut(pattern, placeholders[depth])
		}
		if !isList {
			return numbers, name[done:] == pattern
		}
		rest, ok := strings.CutPrefix(name[done:], before)
		if !ok {
			return nil, false
		}
		digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
		number, ok := parseNumber(digits)
		if !ok {
			return nil, false
		}
		numbers = append(numbers, listNumber{name[:done+len(before)], number})
		done += len(before) + len(digits)
		pattern = after
	}
}

// parseNumber reads a list's number, of which each has one spelling.
func parseNumber(digits string) (int, bool) {
	n, err := strconv.Atoi(digits)
	return n, err == nil && n <= 9999 && strconv.Itoa(n) == digits
}

// checkGap: the library would drop all that follows a gap without a word.
func checkGap(list string, numbers map[int]string, found *problems) {
	for want, n := range slices.Sorted(maps.Keys(numbers)) {
		if n != want {
			found.add(numbers[n], "is set, but nothing of %s%d_: want numbers from 0 without a gap", list, want)
			return
		}
	}
}

func unknownText(all []setting, name, value string) string {
	text := "there is no such setting"
	if near := nearest(all, name); near != "" {
		text += "; did you mean " + near + "?"
	} else {
		text += "; entrepot help config lists them"
	}
	if strings.Contains(name, "_SERVICE_") || strings.Contains(name, "_PORT_") || strings.HasPrefix(value, "tcp://") {
		text += " (if Kubernetes made it for a Service, set enableServiceLinks: false in the pod)"
	}
	return text
}

// nearest is the valid name that name was probably meant to be; empty if none
// comes close.
func nearest(all []setting, name string) string {
	if len(name) > 80 {
		return ""
	}
	typed, numbers := takeNumbers(strings.ToUpper(name))
	best, least := "", 1+(len(typed)-len(ourPrefix))/4
	for _, s := range all {
		candidates := []string{s.name}
		if s.isSecret {
			candidates = append(candidates, s.name+fileSuffix)
		}
		for _, candidate := range candidates {
			if d := words.Distance(typed, numbered(candidate, func(int) string { return numberSign })); d <= least && (best == "" || d < least) {
				best, least = candidate, d
			}
		}
	}
	return numbered(best, func(i int) string {
		if i < len(numbers) {
			return numbers[i]
		}
		return placeholders[i]
	})
}

// numberSign is one character for a number, so that a number counts as one
// edit.
const numberSign = "#"

// takeNumbers replaces the parts of a name that are numbers.
func takeNumbers(name string) (typed string, numbers []string) {
	parts := strings.Split(name, "_")
	for i, part := range parts {
		if n, err := strconv.Atoi(part); err == nil && n >= 0 {
			parts[i] = numberSign
			numbers = append(numbers, strconv.Itoa(n))
		}
	}
	return strings.Join(parts, "_"), numbers
}

// printableName guards the terminal from what may stand in a variable's name.
func printableName(name string) string {
	if len(name) > 100 || strconv.Quote(name) != `"`+name+`"` {
		return words.Quote(name)
	}
	return name
}
