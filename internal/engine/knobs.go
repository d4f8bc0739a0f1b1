package engine

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// treatment is what the engine does with one field of Docker's HostConfig.
type treatment int

const (
	honour treatment = iota + 1 // carried out, or refused with its own message
	keep                        // shown again by inspect, without an effect, as documented
	refuse                      // anything but its zero value is refused by name
)

// knob says how a field is treated and, unless honoured, why.
type knob struct {
	do  treatment
	why string
}

// knobs names every field of HostConfig. A test walks the type, so that a
// field which a new version of Docker's API brings cannot be forgotten, and
// nothing that a client asks for is ever ignored in silence.
var knobs = map[string]knob{
	"Binds":           {do: honour},
	"ContainerIDFile": {do: keep, why: "written by the client"},
	"LogConfig":       {do: honour},
	"NetworkMode":     {do: honour},
	"PortBindings":    {do: honour},
	"RestartPolicy":   {do: honour},
	"AutoRemove":      {do: honour},
	"VolumeDriver":    {do: honour}, // "local" only, as soon as a volume needs one
	"VolumesFrom":     {do: honour},
	"ConsoleSize":     {do: honour},
	"Annotations":     {do: keep, why: "for the client's own use"},
	"CapAdd":          {do: honour},
	"CapDrop":         {do: honour},
	"CgroupnsMode":    {do: honour},
	"DNS":             {do: honour},
	"DNSOptions":      {do: honour},
	"DNSSearch":       {do: honour},
	"ExtraHosts":      {do: honour},
	"GroupAdd":        {do: honour},
	"IpcMode":         {do: honour},
	"Cgroup":          {do: refuse, why: "sharing another container's cgroup is not supported"},
	"Links":           {do: refuse, why: "links are not supported; names on user networks come with them"},
	"OomScoreAdj":     {do: honour},
	"PidMode":         {do: honour},
	"Privileged":      {do: honour},
	"PublishAllPorts": {do: honour},
	"ReadonlyRootfs":  {do: honour},
	"SecurityOpt":     {do: honour},
	"StorageOpt":      {do: refuse, why: "a size for the writable layer is not supported"},
	"Tmpfs":           {do: honour},
	"UTSMode":         {do: honour},
	"UsernsMode":      {do: honour},
	"ShmSize":         {do: honour},
	"Sysctls":         {do: honour},
	"Runtime":         {do: honour},
	"Umask":           {do: honour},
	"Isolation":       {do: honour},
	"Mounts":          {do: honour},
	"MaskedPaths":     {do: honour},
	"ReadonlyPaths":   {do: honour},
	"Init":            {do: honour},

	"CPUShares":            {do: honour},
	"Memory":               {do: honour},
	"NanoCPUs":             {do: honour},
	"CgroupParent":         {do: honour},
	"BlkioWeight":          {do: refuse, why: "block device limits are not supported"},
	"BlkioWeightDevice":    {do: refuse, why: "block device limits are not supported"},
	"BlkioDeviceReadBps":   {do: refuse, why: "block device limits are not supported"},
	"BlkioDeviceWriteBps":  {do: refuse, why: "block device limits are not supported"},
	"BlkioDeviceReadIOps":  {do: refuse, why: "block device limits are not supported"},
	"BlkioDeviceWriteIOps": {do: refuse, why: "block device limits are not supported"},
	"CPUPeriod":            {do: honour},
	"CPUQuota":             {do: honour},
	"CPURealtimePeriod":    {do: refuse, why: "real-time limits are not supported"},
	"CPURealtimeRuntime":   {do: refuse, why: "real-time limits are not supported"},
	"CpusetCpus":           {do: honour},
	"CpusetMems":           {do: honour},
	"Devices":              {do: honour},
	"DeviceCgroupRules":    {do: refuse, why: "name the devices with --device"},
	"DeviceRequests":       {do: refuse, why: "device drivers such as for GPUs are not supported"},
	"MemoryReservation":    {do: honour},
	"MemorySwap":           {do: honour},
	"MemorySwappiness":     {do: honour}, // unset only, see checkResources
	"OomKillDisable":       {do: honour}, // false only
	"PidsLimit":            {do: honour},
	"Ulimits":              {do: honour},

	"CPUCount":           {do: refuse, why: "it is for Windows; use --cpus"},
	"CPUPercent":         {do: refuse, why: "it is for Windows; use --cpus"},
	"IOMaximumIOps":      {do: refuse, why: "it is for Windows"},
	"IOMaximumBandwidth": {do: refuse, why: "it is for Windows"},
}

// checkKnobs refuses every field that is set and cannot be honoured, all at
// once and by name. What only a VM cannot honour is machine.Check's to say.
func checkKnobs(h *container.HostConfig) error {
	v := reflect.ValueOf(h).Elem()
	var bad []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		if f.Anonymous {
			continue
		}
		k := knobs[f.Name]
		if k.do == refuse && !empty(v.FieldByIndex(f.Index)) {
			bad = append(bad, fmt.Sprintf("%s: %s", f.Name, k.why))
		}
	}
	if len(bad) == 0 {
		return nil
	}
	sort.Strings(bad)
	return invalid("cannot honour %s", strings.Join(bad, "; "))
}

// empty is the zero value, or a list or map with nothing in it.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	}
	return v.IsZero()
}
