package space

// Host describes a host to its first process, the anchor: what it calls
// itself and what it sees of the file system.
type Host struct {
	// Name is the host name.
	Name string `json:"name"`
	// Var is a directory that the host sees as /var; /run is empty then.
	// Without it the host shares both with the machine.
	Var string `json:"var,omitempty"`
	// Keep are directories that stay visible under their own names.
	Keep []string `json:"keep,omitempty"`
	// Cover maps files of /proc to files that are seen in their place, for
	// settings of the whole machine that programs on the host want to
	// change.
	Cover map[string]string `json:"cover,omitempty"`
	// Machine makes the host one with a systemd, which takes the anchor's
	// place. Of the above Name and Keep count then, and what is kept cannot be
	// written.
	Machine *Machine `json:"machine,omitempty"`
}

// Machine describes a host that lives like a computer of its own: a copy of this
// one, in memory as far as it differs, on which a systemd runs and has started what
// all services need (sysinit.target), but none of the services.
type Machine struct {
	// Group is the directory of an empty control group of version 2, which the
	// machine sees as the root of all groups.
	Group string `json:"group"`
}

// Ready is what the anchor writes on its standard output when the host is set
// up.
const Ready = "ready\n"
