package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	units "github.com/docker/go-units"

	"proa/internal/client"
	"proa/internal/failure"
	"proa/internal/filters"
)

// row is one line of a list, by Docker's template keys.
type row map[string]string

// column is one column of a table: the template key and its heading.
type column struct{ key, heading string }

var templateFuncs = template.FuncMap{
	"json": func(v any) string {
		b, _ := json.Marshal(v)
		return string(b)
	},
	"join":    strings.Join,
	"split":   strings.Split,
	"lower":   strings.ToLower,
	"upper":   strings.ToUpper,
	"title":   func(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] },
	"println": func(v ...any) string { return fmt.Sprintln(v...) },
}

// parseTemplate reads a --format value.
func parseTemplate(format string) (*template.Template, error) {
	t, err := template.New("").Funcs(templateFuncs).Option("missingkey=error").Parse(format)
	if err != nil {
		return nil, fmt.Errorf("cannot read --format: %w", err)
	}
	return t, nil
}

// printRows prints a list as Docker does: a table of cols, or by format: a
// template, "json" (one object a line) or "table TEMPLATE".
func printRows(w io.Writer, format string, cols []column, rows []row) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	headings := row{}
	for _, c := range cols {
		headings[c.key] = c.heading
	}
	table := false
	switch {
	case format == "" || format == "table":
		table = true
		parts := make([]string, 0, len(cols))
		for _, c := range cols {
			if !strings.HasPrefix(c.heading, "-") {
				parts = append(parts, "{{."+c.key+"}}")
			}
		}
		format = strings.Join(parts, "\t")
	case strings.HasPrefix(format, "table "):
		table = true
		format = strings.TrimPrefix(format, "table ")
	}
	format = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	out := w
	if table {
		tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
		defer tw.Flush()
		out = tw
		for k, h := range headings {
			headings[k] = strings.TrimPrefix(h, "-")
		}
		rows = append([]row{headings}, rows...)
	}
	for _, r := range rows {
		if table { // one value, one cell
			cells := make(row, len(r))
			for k, v := range r {
				cells[k] = failure.Visible(v, "")
			}
			r = cells
		}
		if err := t.Execute(out, r); err != nil {
			return fmt.Errorf("cannot apply --format: %w", err)
		}
		fmt.Fprintln(out)
	}
	return nil
}

// printInspect prints values as Docker's inspect does: an indented JSON array,
// or each through a template.
func printInspect(w io.Writer, format string, values []json.RawMessage) error {
	if format == "" || format == "json" {
		if values == nil {
			values = []json.RawMessage{}
		}
		b, err := json.Marshal(values)
		if err != nil {
			return err
		}
		if format == "" {
			b, err = json.MarshalIndent(values, "", "    ")
			if err != nil {
				return err
			}
		}
		fmt.Fprintln(w, string(b))
		return nil
	}
	t, err := template.New("").Funcs(templateFuncs).Parse(format)
	if err != nil {
		return fmt.Errorf("cannot read --format: %w", err)
	}
	for _, raw := range values {
		var v any
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.UseNumber()
		if err := dec.Decode(&v); err != nil {
			return err
		}
		if err := t.Execute(w, v); err != nil {
			return fmt.Errorf("cannot apply --format: %w", err)
		}
		fmt.Fprintln(w)
	}
	return nil
}

// printFormatted prints one value by format, "json" or a template, on a line
// of its own. Without a format it prints nothing and reports false.
func printFormatted(w io.Writer, format string, v any) (bool, error) {
	if format == "" {
		return false, nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return true, err
	}
	if format == "json" {
		_, err = fmt.Fprintln(w, string(raw))
		return true, err
	}
	return true, printInspect(w, format, []json.RawMessage{raw})
}

// shortID is an id as people see it: 12 hex digits, no algorithm.
func shortID(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(12, len(id))]
}

// ago is a time as "5 minutes ago".
func ago(unix int64) string {
	if unix <= 0 {
		return "N/A"
	}
	return units.HumanDuration(time.Since(time.Unix(unix, 0))) + " ago"
}

// humanSize is a size in decimal units, as Docker prints it.
func humanSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// parseFilters reads repeated --filter key=value of a list.
func parseFilters(of *filters.List, args []string) (client.Filters, error) {
	a, err := of.Flags(args)
	if err != nil {
		return nil, err
	}
	f := client.Filters{}
	for k := range a {
		f[k] = a.Values(k)
	}
	return f, nil
}
