package boot

// Under gVisor, the guest finds its surroundings made. Its config is a file,
// and what else it needs lies at places of its own that only root may enter.
const (
	GVisor   = "-gvisor" // the guest program's argument
	ConfigFD = 3         // file with the config, without a length

	Dir       = "/.mayfly"
	RunsDir   = Dir + "/runs"   // logs and exit records
	SocketDir = Dir + "/socket" // where to listen, under the name Socket
	GroupDir  = Dir + "/group"  // empty: gVisor's control groups go here
	Socket    = "guest.sock"
)
