package event

import "maps"

// Row is one kind of event: what happened to what, who its actor is and what
// its attributes are besides those that its object gives (a container's labels,
// image and name; an image's labels).
type Row struct {
	Type, Action string
	Actor        string   // what the actor's id is; "" where there is none
	Own          []string // attributes of the event itself, in the order of Event's values
	Detail       bool     // the action goes on with ": " and what was done
	Since        int      // minor version of the API whose clients see it first; 0: all
	When         string
}

// The events of moby (the callers of EventsService.Log, API 1.56) that this
// engine has a cause for. Not here: those of swarms and plugins, networks of
// users' own, checkpoints, a daemon's reload.
var (
	ContainerArchivePath  = row("container", "archive-path", "container", "files were copied out")
	ContainerAttach       = row("container", "attach", "container", "a client attached")
	ContainerCommit       = row("container", "commit", "container", "an image was made of it", "comment", "imageID", "imageRef")
	ContainerCreate       = row("container", "create", "container", "it was created")
	ContainerDestroy      = row("container", "destroy", "container", "it was removed")
	ContainerDetach       = row("container", "detach", "container", "the detach keys were typed")
	ContainerDie          = row("container", "die", "container", "its main process ended", "exitCode", "execDuration")
	ContainerExecCreate   = detailed("container", "exec_create", "container", "an exec or a health check was made", "execID")
	ContainerExecDetach   = row("container", "exec_detach", "container", "the detach keys were typed", "execID")
	ContainerExecDie      = row("container", "exec_die", "container", "an exec or a health check ended", "execID", "exitCode")
	ContainerExecStart    = detailed("container", "exec_start", "container", "an exec or a health check began", "execID")
	ContainerExport       = row("container", "export", "container", "its files were exported")
	ContainerExtractToDir = row("container", "extract-to-dir", "container", "files were copied in")
	ContainerHealthStatus = detailed("container", "health_status", "container", "its health changed")
	ContainerKill         = row("container", "kill", "container", "a signal was sent: by kill, stop, restart or a forced removal", "signal")
	ContainerOOM          = row("container", "oom", "container", "the kernel killed a process of it for want of memory")
	ContainerPause        = row("container", "pause", "container", "it was paused")
	ContainerPrune        = row("container", "prune", "", "containers were pruned", "reclaimed")
	ContainerRename       = row("container", "rename", "container", "it got another name", "oldName")
	ContainerResize       = row("container", "resize", "container", "its terminal got another size", "height", "width")
	ContainerRestart      = row("container", "restart", "container", "a restart that was asked for has been done")
	ContainerStart        = row("container", "start", "container", "its main process began")
	ContainerStop         = row("container", "stop", "container", "a stop or the first half of a restart has been done")
	ContainerTop          = row("container", "top", "container", "its processes were listed")
	ContainerUnpause      = row("container", "unpause", "container", "it goes on")
	ContainerUpdate       = row("container", "update", "container", "its limits or policy changed")

	ImageCreate = since(46, row("image", "create", "image", "a build or a commit made it", "name"))
	ImageDelete = row("image", "delete", "image", "it was removed", "name")
	ImageImport = row("image", "import", "image", "it was imported", "name")
	ImageLoad   = row("image", "load", "image", "it was loaded", "name")
	ImagePrune  = row("image", "prune", "", "images were pruned", "reclaimed")
	ImagePull   = row("image", "pull", "name:tag", "it was pulled", "name")
	ImagePush   = row("image", "push", "name:tag", "it was pushed", "name")
	ImageSave   = row("image", "save", "image", "it was saved", "name")
	ImageTag    = row("image", "tag", "image", "it got a name", "name")
	ImageUntag  = row("image", "untag", "image", "it lost a name", "name")

	VolumeCreate  = row("volume", "create", "volume", "it was made, also by a container's create", "driver")
	VolumeDestroy = row("volume", "destroy", "volume", "it was removed, also with a container", "driver")
	VolumeMount   = row("volume", "mount", "volume", "a start mounted it", "container", "destination", "driver", "propagation", "read/write")
	VolumePrune   = row("volume", "prune", "", "volumes were pruned", "reclaimed")
	VolumeUnmount = row("volume", "unmount", "volume", "a run that had mounted it ended", "container", "driver")

	NetworkConnect    = row("network", "connect", "network", "a start joined it", "container", "name", "type")
	NetworkDisconnect = row("network", "disconnect", "network", "a run that had joined it ended", "container", "name", "type")
	NetworkPrune      = row("network", "prune", "", "networks were pruned", "reclaimed")

	BuilderPrune = row("builder", "prune", "", "the build cache was pruned", "reclaimed")
)

// rows are filled by row, in the order of the table.
var rows []*Row

func row(kind, action, actor, when string, own ...string) *Row {
	r := &Row{Type: kind, Action: action, Actor: actor, Own: own, When: when}
	rows = append(rows, r)
	return r
}

func detailed(kind, action, actor, when string, own ...string) *Row {
	r := row(kind, action, actor, when, own...)
	r.Detail = true
	return r
}

func since(version int, r *Row) *Row {
	r.Since = version
	return r
}

// Rows is the table.
func Rows() []*Row { return rows }

// Of makes an event of this kind: the id of its actor, the attributes that the
// object gives, and a value for each of the event's own.
func (r *Row) Of(id string, object map[string]string, own ...string) Event {
	attributes := make(map[string]string, len(object)+len(own))
	maps.Copy(attributes, object)
	for i, key := range r.Own {
		attributes[key] = own[i]
	}
	return Event{Type: r.Type, Action: r.Action, ID: id, Attributes: attributes, Since: r.Since}
}

// With adds what was done to the action of a row that has a detail.
func (e Event) With(detail string) Event {
	e.Action += ": " + detail
	return e
}
