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
}

// Ready is what the anchor writes on its standard output when the host is set
// up.
const Ready = "ready\n"
