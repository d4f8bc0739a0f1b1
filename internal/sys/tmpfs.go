package sys

import "strings"

// TmpfsOptions turns options of a tmpfs, written as for mount(8), into
// attributes of its mount and parameters of its file system; a parameter
// without a value is a flag. It begins with nosuid, nodev and noexec, as Docker
// does; of two options that contradict each other the later one counts.
func TmpfsOptions(options string) (attr int, params map[string]string) {
	const times = MountNoatime | MountStrictatime
	attr, params = MountNosuid|MountNodev|MountNoexec, map[string]string{}
	set := map[string]int{"ro": MountReadonly, "nosuid": MountNosuid, "nodev": MountNodev, "noexec": MountNoexec, "nodiratime": MountNodiratime}
	clear := map[string]int{"rw": MountReadonly, "suid": MountNosuid, "dev": MountNodev, "exec": MountNoexec, "diratime": MountNodiratime, "atime": MountNoatime, "relatime": times, "nostrictatime": MountStrictatime}
	for _, o := range strings.Split(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "" || key == "defaults" || key == "norelatime":
		case key == "noatime":
			attr = attr&^times | MountNoatime
		case key == "strictatime":
			attr = attr&^times | MountStrictatime
		case set[key] != 0:
			attr |= set[key]
		case clear[key] != 0:
			attr &^= clear[key]
		case key == "async":
			delete(params, "sync")
		default:
			params[key] = value
		}
	}
	return attr, params
}
