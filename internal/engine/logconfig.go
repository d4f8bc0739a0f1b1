package engine

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"time"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
)

// Logs are bounded by default.
const (
	logMaxBytes = 20 << 20
	logMaxFiles = 5
	logBuffer   = 1_000_000 // of mode=non-blocking, as Docker's
)

// checkLog refuses at create what Docker refuses at create or at start (moby
// daemon/logger/factory.go and jsonfilelog).
func checkLog(l container.LogConfig) error {
	switch l.Type {
	case "none": // takes and ignores every option
		return nil
	case "", "json-file":
	default:
		return invalid("error looking up logging plugin %s: plugin \"%s\" not found", l.Type, l.Type)
	}
	for k, v := range l.Config {
		if err := checkLogOption(k, v, l.Config); err != nil {
			return err
		}
	}
	if l.Config["max-size"] == "-1" {
		return invalid("max-size must be a positive number")
	}
	out, err := logFiles(l)
	if err == nil && out.Compress && out.MaxFiles < 2 {
		return invalid("compress cannot be true when max-file is less than 2")
	}
	return err
}

func checkLogOption(k, v string, all map[string]string) error {
	switch k {
	case "max-size", "max-file", "compress", "labels", "env": // logFiles reads the first three
	case "labels-regex", "env-regex":
		if _, err := regexp.Compile(v); err != nil {
			return invalid("invalid value for %s: %w", k, err)
		}
	case "tag":
		_, err := logTag(v, &logInfo{Config: all, ContainerCreated: time.Unix(0, 0)})
		return err
	case "mode":
		if v != "" && v != "blocking" && v != "non-blocking" {
			return invalid("logger: logging mode not supported: %s", v)
		}
	case "max-buffer-size":
		if all["mode"] != "non-blocking" {
			return invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		if _, err := units.RAMInBytes(v); err != nil {
			return invalid("error parsing option max-buffer-size: %w", err)
		}
	default:
		return invalid("unknown log opt '%s' for json-file log driver", k)
	}
	return nil
}

// logFiles reads how long and how many the files of a log may be. A record of
// an older engine may have the max-size -1, without a bound.
func logFiles(l container.LogConfig) (isolation.Log, error) {
	out := isolation.Log{Driver: "json-file", MaxBytes: logMaxBytes, MaxFiles: logMaxFiles}
	var err error
	if v, ok := l.Config["max-size"]; v == "-1" {
		out.MaxBytes = 0
	} else if ok {
		if out.MaxBytes, err = units.FromHumanSize(v); err != nil {
			return out, invalid("invalid value for max-size: %s: %w", v, err)
		}
		if out.MaxBytes <= 0 {
			return out, invalid("max-size must be a positive number")
		}
	}
	if v, ok := l.Config["max-file"]; ok {
		if out.MaxFiles, err = strconv.Atoi(v); err != nil {
			return out, invalid("invalid value for max-file: %s: %w", v, err)
		}
		if out.MaxFiles < 1 {
			return out, invalid("max-file cannot be less than 1")
		}
	}
	if v, ok := l.Config["compress"]; ok {
		if out.Compress, err = strconv.ParseBool(v); err != nil {
			return out, invalid("invalid value for compress: %s: %w", v, err)
		}
	}
	return out, nil
}

// logOf turns the log options of a container into what its shim writes.
func logOf(r *record, path, hostname string) (isolation.Log, error) {
	l := r.Host.LogConfig
	if l.Type == "none" {
		return isolation.Log{Driver: "none"}, nil
	}
	out, err := logFiles(l)
	if err != nil {
		return out, err
	}
	out.Path = path
	if l.Config["mode"] == "non-blocking" {
		out.Buffer = logBuffer
		if v, ok := l.Config["max-buffer-size"]; ok {
			if out.Buffer, err = units.RAMInBytes(v); err != nil {
				return out, invalid("error parsing option max-buffer-size: %w", err)
			}
			out.Buffer = max(out.Buffer, 1) // 0 keeps one record, as in Docker
		}
	}
	out.Attrs, err = logAttrs(r, path, hostname)
	return out, err
}

// logAttrs are the attributes of each record: labels and variables that the
// options name, and the tag.
func logAttrs(r *record, path, hostname string) (map[string]string, error) {
	l := r.Host.LogConfig.Config
	if l["labels"]+l["labels-regex"]+l["env"]+l["env-regex"]+l["tag"] == "" {
		return nil, nil
	}
	attrs := map[string]string{}
	env := map[string]string{}
	for _, e := range r.Config.Env {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	for _, from := range []struct {
		option string
		values map[string]string
	}{{"labels", r.Config.Labels}, {"env", env}} {
		for _, k := range strings.Split(l[from.option], ",") {
			if v, ok := from.values[k]; ok {
				attrs[k] = v
			}
		}
		pattern := l[from.option+"-regex"]
		if pattern == "" {
			continue
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, invalid("invalid value for %s-regex: %w", from.option, err)
		}
		for k, v := range from.values {
			if re.MatchString(k) {
				attrs[k] = v
			}
		}
	}
	path0, args := argv(r.Config)
	tag, err := logTag(l["tag"], &logInfo{
		Config: l, ContainerID: r.ID, ContainerName: "/" + r.Name, ContainerEntrypoint: path0, ContainerArgs: args,
		ContainerImageID: r.ImageID.String(), ContainerImageName: r.ImageRef, ContainerCreated: r.Created,
		ContainerEnv: r.Config.Env, ContainerLabels: r.Config.Labels, LogPath: path, DaemonName: "docker", host: hostname,
	})
	if err != nil {
		return nil, err
	}
	if tag != "" {
		attrs["tag"] = tag
	}
	return attrs, nil
}

// logInfo is what a template of the tag option may use, by Docker's names.
type logInfo struct {
	Config              map[string]string
	ContainerID         string
	ContainerName       string
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string
	ContainerImageName  string
	ContainerCreated    time.Time
	ContainerEnv        []string
	ContainerLabels     map[string]string
	LogPath             string
	DaemonName          string

	host string
}

func (i *logInfo) ID() string          { return truncated(i.ContainerID) }
func (i *logInfo) FullID() string      { return i.ContainerID }
func (i *logInfo) Name() string        { return strings.TrimPrefix(i.ContainerName, "/") }
func (i *logInfo) ImageID() string     { return truncated(i.ContainerImageID) }
func (i *logInfo) ImageFullID() string { return i.ContainerImageID }
func (i *logInfo) ImageName() string   { return i.ContainerImageName }
func (i *logInfo) Command() string {
	return strings.Join(append([]string{i.ContainerEntrypoint}, i.ContainerArgs...), " ")
}

func (i *logInfo) Hostname() (string, error) {
	if i.host != "" {
		return i.host, nil
	}
	return os.Hostname()
}

// truncated is the short form of an id, without the name of a digest's algorithm.
func truncated(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(len(id), 12)]
}

// logFuncs are the functions of Docker's templates.
var logFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		var b strings.Builder
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		err := enc.Encode(v)
		return strings.TrimSpace(b.String()), err
	},
	"split": strings.Split,
	"join":  strings.Join,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"title": func(s string) string {
		words := strings.Fields(s)
		for i, w := range words {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
		return strings.Join(words, " ")
	},
	"pad": func(s string, before, after int) string {
		if s == "" {
			return s
		}
		return strings.Repeat(" ", min(max(before, 0), logMaxPad)) + s + strings.Repeat(" ", min(max(after, 0), logMaxPad))
	},
	"truncate": func(s string, n int) string { return s[:min(len(s), max(n, 0))] },
}

// logMaxPad bounds what a template may add in one place.
const logMaxPad = 1024

// logTag executes the template of the tag option.
func logTag(text string, i *logInfo) (string, error) {
	t, err := template.New("log-tag").Funcs(logFuncs).Parse(text)
	if err != nil {
		return "", invalid("invalid value for tag: %w", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, i); err != nil {
		return "", invalid("invalid value for tag: %w", err)
	}
	return b.String(), nil
}
