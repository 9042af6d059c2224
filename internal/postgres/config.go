package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
)

// defaults are the settings of every instance where a template says nothing
// else: small, without work in the background that would write to a fresh
// copy, and silent.
var defaults = map[string]string{
	"shared_buffers": "32MB", "autovacuum": "off", "wal_init_zero": "off", "wal_recycle": "off",
	"jit": "off", "max_wal_senders": "2", "max_logical_replication_workers": "0", "max_replication_slots": "4", "wal_level": "replica",
	"timezone": "UTC", "log_timezone": "UTC", "lc_messages": "C", "log_min_messages": "warning",
	"log_checkpoints": "off", "log_line_prefix": "%m [%p] ",
}

// preparing are the settings while a baseline is made: nothing is durable
// until the end, and nothing leaves.
var preparing = map[string]string{
	"shared_buffers": "128MB", "autovacuum": "off", "fsync": "off", "full_page_writes": "off",
	"synchronous_commit": "off", "wal_level": "minimal", "max_wal_senders": "0", "wal_init_zero": "off",
	"wal_recycle": "off", "max_wal_size": "4GB", "checkpoint_timeout": "1h", "jit": "off",
	"maintenance_work_mem": "128MB", "max_locks_per_transaction": "512", "max_prepared_transactions": "0",
	"max_logical_replication_workers": "0", "archive_mode": "off", "timezone": "UTC", "log_timezone": "UTC",
	"lc_messages": "C", "log_min_messages": "warning", "log_checkpoints": "off",
}

// fixed are settings that are not a template's to make: where things are, who
// gets in, and what leaves the instance or starts programs outside of it.
var fixed = []string{
	"allow_system_table_mods", "archive_cleanup_command", "archive_command", "archive_library", "archive_mode",
	"bonjour", "cluster_name", "config_file", "data_directory", "data_sync_retry", "db_user_namespace",
	"dynamic_library_path", "external_pid_file", "fsync", "full_page_writes", "hba_file", "ident_file",
	"ignore_invalid_pages", "krb_server_keyfile", "listen_addresses", "log_destination", "log_directory",
	"log_filename", "logging_collector", "max_prepared_transactions", "oauth_validator_libraries", "port", "primary_conninfo",
	"primary_slot_name", "recovery_end_command", "restore_command", "ssl", "ssl_ca_file", "ssl_cert_file",
	"ssl_crl_dir", "ssl_crl_file", "ssl_dh_params_file", "ssl_key_file", "ssl_passphrase_command",
	"stats_temp_directory", "syslog_ident", "unix_socket_directories", "unix_socket_group",
	"unix_socket_permissions", "zero_damaged_pages",
}

// CheckSettings refuses what a template may not set.
func CheckSettings(settings map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := settings[name]
		switch {
		case !isSetting(name):
			return mayfly.Errorf(mayfly.Invalid, "bad name %.80q of a Postgres setting", name).
				Hint("use lower-case letters, digits, _ and, for those of extensions, one dot")
		case slices.Contains(fixed, name):
			return mayfly.Errorf(mayfly.Invalid, "the Postgres setting %s is not a template's to make", name).Hint("leave it out")
		case len(value) > 1000 || strings.ContainsAny(value, "\x00\n\r"):
			return mayfly.Errorf(mayfly.Invalid, "bad value of the Postgres setting %s", name).Hint("use one line of text")
		case strings.HasSuffix(name, "_preload_libraries") && strings.ContainsRune(value, '/'):
			return mayfly.Errorf(mayfly.Invalid, "%s names a path", name).Hint("name libraries of installed extensions")
		}
	}
	return nil
}

func isSetting(name string) bool {
	return len(name) <= maxIdentifier && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_.") == "" &&
		name != "" && name[0] != '.' && strings.Count(name, ".") <= 1 && !strings.HasPrefix(name, "include")
}

// render makes a configuration file; the later of two maps wins.
func render(layers ...map[string]string) []byte {
	all := map[string]string{}
	for _, layer := range layers {
		maps.Copy(all, layer)
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value := strings.NewReplacer(`\`, `\\`, "'", "''").Replace(all[name])
		fmt.Fprintf(&b, "%s = '%s'\n", name, value)
	}
	return []byte(b.String())
}

// access is pg_hba.conf: passwords for everybody, and Admin on the unix socket
// only. What no line admits is refused, replication among it.
const access = `local all mayfly                scram-sha-256
host  all mayfly all             reject
local all all                    scram-sha-256
host  all all    127.0.0.1/32    scram-sha-256
host  all all    ::1/128         scram-sha-256
`

// closed is pg_hba.conf before Open.
const closed = "local all mayfly scram-sha-256\n"

// trusting is pg_hba.conf while a baseline is made, in a place where nobody
// else is.
const trusting = "local all mayfly trust\nlocal all mayfly_prepare trust\n"

// arguments are those of the server process. They win over files and ALTER
// SYSTEM.
func (i Instance) arguments() []string {
	socket := strings.NewReplacer(`\`, `\\`, `"`, `""`).Replace(i.Socket.inside())
	data := i.Data.inside()
	if i.Moves { // every process of the server has it as its working directory
		data = "/proc/self/cwd"
	}
	list := []string{i.Install.program("postgres"), "-D", data}
	set := func(name, value string) { list = append(list, "-c", name+"="+value) }
	for _, name := range slices.Sorted(maps.Keys(i.Settings)) {
		set(name, i.Settings[name])
	}
	set("unix_socket_directories", `"`+socket+`"`)
	set("unix_socket_permissions", "0777")
	set("unix_socket_group", "")
	set("port", strconv.Itoa(Port))
	set("listen_addresses", i.Address)
	set("fsync", onOff(!i.NoSync))
	set("full_page_writes", onOff(!i.CopyOnWrite))
	set("logging_collector", "off")
	set("log_destination", "stderr")
	set("ssl", "off")
	set("archive_mode", "off")
	set("max_prepared_transactions", "0")
	set("external_pid_file", "")
	return list
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
