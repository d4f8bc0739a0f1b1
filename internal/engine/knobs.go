package engine

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	"github.com/containerd/errdefs"
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
	vm  treatment // behind a VM; 0 means as do
}

// knobs names every field of HostConfig. A test walks the type, so that a
// field which a new version of Docker's API brings cannot be forgotten, and
// nothing that a client asks for is ever ignored in silence.
var knobs = map[string]knob{
	"Binds":           {do: honour, vm: refuse, why: "a VM cannot have bind mounts or volumes yet"},
	"ContainerIDFile": {do: keep, why: "written by the client"},
	"LogConfig":       {do: honour},
	"NetworkMode":     {do: honour},
	"PortBindings":    {do: honour},
	"RestartPolicy":   {do: honour},
	"AutoRemove":      {do: honour},
	"VolumeDriver":    {do: honour}, // "local" only
	"VolumesFrom":     {do: honour, vm: refuse, why: "a VM cannot have bind mounts or volumes yet"},
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
	"OomScoreAdj":     {do: honour, vm: refuse, why: "the guest's kernel picks its own victims"},
	"PidMode":         {do: honour, vm: refuse, why: "a VM's processes are not the host's"},
	"Privileged":      {do: honour},
	"PublishAllPorts": {do: honour},
	"ReadonlyRootfs":  {do: honour},
	"SecurityOpt":     {do: honour},
	"StorageOpt":      {do: refuse, why: "a size for the writable layer is not supported"},
	"Tmpfs":           {do: honour},
	"UTSMode":         {do: honour, vm: refuse, why: "a VM has its own kernel"},
	"UsernsMode":      {do: honour, vm: refuse, why: "a VM has its own kernel"},
	"ShmSize":         {do: honour},
	"Sysctls":         {do: honour},
	"Runtime":         {do: honour},
	"Umask":           {do: honour},
	"Isolation":       {do: honour},
	"Mounts":          {do: honour}, // a VM: tmpfs only
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
	"Devices":              {do: honour, vm: refuse, why: "a VM cannot have the host's devices"},
	"DeviceCgroupRules":    {do: refuse, why: "name the devices with --device"},
	"DeviceRequests":       {do: refuse, why: "device drivers such as for GPUs are not supported"},
	"MemoryReservation":    {do: honour, vm: refuse, why: "a guest's memory is one size"},
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
// once and by name.
func checkKnobs(h *container.HostConfig, vm bool) error {
	v := reflect.ValueOf(h).Elem()
	var bad []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		if f.Anonymous {
			continue
		}
		k := knobs[f.Name]
		do := k.do
		if vm && k.vm != 0 {
			do = k.vm
		}
		if do == refuse && !empty(v.FieldByIndex(f.Index)) {
			bad = append(bad, fmt.Sprintf("%s: %s", f.Name, k.why))
		}
	}
	if len(bad) == 0 {
		return nil
	}
	sort.Strings(bad)
	return fmt.Errorf("cannot honour %s: %w", strings.Join(bad, "; "), errdefs.ErrInvalidArgument)
}

// empty is the zero value, or a list or map with nothing in it.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	}
	return v.IsZero()
}
