package postgres

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"mayfly.dev/mayfly"
)

// Source is what a baseline begins with: nothing, or one of these.
type Source struct {
	Dump      string  // file or directory that pg_dump made, in any format, possibly compressed by gzip or zstd
	Directory string  // PGDATA that no server uses; Prepare takes it away, within its file system
	Name      string  // what errors call Directory; empty: as it is
	Server    *Server // a live server, whose database is dumped
	Physical  bool    // copy the whole of Server with pg_basebackup instead
}

func (s Source) check() error {
	given := 0
	for _, is := range []bool{s.Dump != "", s.Directory != "", s.Server != nil} {
		if is {
			given++
		}
	}
	if given > 1 || s.Physical && s.Server == nil {
		return mayfly.Errorf(mayfly.Invalid, "a baseline has one source").Hint("name a dump, a directory or a server")
	}
	return nil
}

// physical reports whether the source comes as a data directory.
func (s Source) physical() bool { return s.Directory != "" || s.Physical }

// Server is how to reach a live server. It is kept nowhere.
type Server struct {
	Host, Port, User, Password, Database string
	SSLMode                              string // as for libpq; empty: prefer
}

// ParseServer takes a URL such as postgres://user:password@host:port/database
// apart. Parameters that would name files or services of this machine are
// refused.
func ParseServer(s string) (Server, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || u.Host == "" && u.Query().Get("host") == "" {
		return Server{}, mayfly.Errorf(mayfly.Invalid, "the connection is not a URL of Postgres").
			Hint("use postgres://USER:PASSWORD@HOST:PORT/DATABASE, with odd characters percent-encoded")
	}
	password, _ := u.User.Password()
	v := Server{Host: u.Hostname(), Port: u.Port(), User: u.User.Username(), Password: password, Database: strings.TrimPrefix(u.Path, "/")}
	fields := map[string]*string{"host": &v.Host, "port": &v.Port, "user": &v.User, "password": &v.Password,
		"dbname": &v.Database, "sslmode": &v.SSLMode}
	for name, values := range u.Query() {
		field, ok := fields[name]
		if !ok {
			return Server{}, mayfly.Errorf(mayfly.Invalid, "the connection has the parameter %.40q", name).
				Hint("only host, port, user, password, dbname and sslmode are used")
		}
		*field = values[len(values)-1]
	}
	if v.Port == "" {
		v.Port = "5432"
	}
	if v.Database == "" {
		v.Database = v.User
	}
	if _, err := strconv.ParseUint(v.Port, 10, 16); err != nil || strings.Contains(v.Host, ",") || v.User == "" {
		return Server{}, mayfly.Errorf(mayfly.Invalid, "the connection has no user, a bad port or several hosts")
	}
	modes := []string{"", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
	if !slices.Contains(modes, v.SSLMode) {
		return Server{}, mayfly.Errorf(mayfly.Invalid, "the connection has the sslmode %.40q", v.SSLMode).Hint("use one of%s", strings.Join(modes, " "))
	}
	return v, nil
}

// authorities is the file of certificates that servers are checked against.
const authorities = "/etc/ssl/certs/ca-certificates.crt"

// environment is how programs of Postgres get the connection: arguments could
// be read by others.
func (v Server) environment() []string {
	list := environment("PGHOST="+v.Host, "PGPORT="+v.Port, "PGUSER="+v.User, "PGPASSWORD="+v.Password, "PGDATABASE="+v.Database,
		"PGCONNECT_TIMEOUT=20", "PGAPPNAME=mayfly", "PGPASSFILE=/dev/null", "PGOPTIONS=-c default_transaction_read_only=on")
	if v.SSLMode != "" {
		list = append(list, "PGSSLMODE="+v.SSLMode)
	}
	if strings.HasPrefix(v.SSLMode, "verify") {
		list = append(list, "PGSSLROOTCERT="+authorities)
	}
	return list
}

// redact removes the password from a program's message.
func (v Server) redact(s string) string {
	if v.Password == "" {
		return s
	}
	return strings.ReplaceAll(s, v.Password, "***")
}

// connect connects for questions that change nothing.
func (v Server) connect(ctx context.Context) (*pgconn.PgConn, error) {
	mode := v.SSLMode
	if mode == "" {
		mode = "prefer"
	}
	text := "host=localhost port=" + v.Port + " user=x password=x dbname=x sslmode=" + mode + " passfile=/dev/null servicefile=/dev/null"
	if !strings.HasPrefix(v.Host, "/") {
		host := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v.Host)
		text = strings.Replace(text, "host=localhost", "host='"+host+"'", 1) // TLS checks the name
	}
	config, err := pgconn.ParseConfig(text)
	if err != nil {
		return nil, errors.New("the connection cannot be used")
	}
	config.User, config.Password, config.Database = v.User, v.Password, v.Database
	config.RuntimeParams = map[string]string{"default_transaction_read_only": "on", "search_path": "pg_catalog", "application_name": "mayfly"}
	if strings.HasPrefix(v.Host, "/") {
		config.TLSConfig, config.Fallbacks = nil, nil
		config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", v.Host+"/.s.PGSQL."+v.Port)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Unavailable, "the source %s:%s cannot be reached: %s", v.Host, v.Port, v.redact(err.Error())).
			Hint("check the connection from here, user, password and database included")
	}
	return conn, nil
}

// examine looks at a live source before it is copied.
func (p *preparation) examine(ctx context.Context) (tablespaces []string, err error) {
	conn, err := p.Source.Server.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	version := conn.ParameterStatus("server_version")
	major, _, err := parseVersion(strings.Fields(version + " ?")[0])
	if err != nil {
		return nil, err
	}
	if major > p.Install.Major || p.Source.Physical && major != p.Install.Major {
		return nil, wrongMajor("the source's server", version, p.Install)
	}
	ask := func(sql string) []string {
		values, failed := column(ctx, conn, sql)
		err = errors.Join(err, failed)
		return values
	}
	prepared := ask("SELECT gid FROM pg_prepared_xacts WHERE database = current_database() OR " + strconv.FormatBool(p.Source.Physical))
	if len(prepared) > 0 {
		if p.Source.Physical {
			return nil, preparedTransactions(len(prepared))
		}
		p.note("the source has %d prepared transactions: what they did is not in the baseline", len(prepared))
	}
	if n := len(ask("SELECT slot_name FROM pg_replication_slots")); n > 0 && p.Source.Physical {
		p.note("the source has %d replication slots: the baseline has none", n)
	}
	if p.Source.Physical {
		tablespaces = ask("SELECT oid || ' ' || pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''")
	}
	return tablespaces, err
}

func preparedTransactions(n int) error {
	return mayfly.Errorf(mayfly.Conflict, "the source has %d prepared transactions, which would stay locked for ever in a copy", n).
		Hint("commit or roll them back at the source; see them with: SELECT * FROM pg_prepared_xacts")
}

// baseBackup copies all of a live server. That forces a checkpoint there, and
// uses no slot.
func (p *preparation) baseBackup(ctx context.Context) error {
	tablespaces, err := p.examine(ctx)
	if err != nil {
		return err
	}
	const data = "/data"
	args := []string{"-D", data, "--wal-method=stream", "--no-slot", "--checkpoint=fast", "--no-sync", "--no-manifest", "--no-password"}
	for _, t := range tablespaces {
		oid, location, _ := strings.Cut(t, " ")
		args = append(args, "-T", strings.ReplaceAll(location, "=", `\=`)+"="+data+"/"+tablespacesDir+"/"+oid)
	}
	server := *p.Source.Server
	if err := os.Chown(p.data(), int(p.Outside), int(p.Outside)); err != nil {
		return err
	}
	cmd := p.outside("pg_basebackup", args...)
	cmd.Env = slices.DeleteFunc(server.environment(), func(s string) bool { return strings.HasPrefix(s, "PGOPTIONS=") })
	var out tail
	cmd.Stderr = &out
	place := p.reaching(server)
	place.show = append(place.show, bind{Dir: Dir{Host: p.data(), Inside: data}})
	if err := place.run(ctx, cmd); err != nil {
		return mayfly.Errorf(mayfly.Unavailable, "pg_basebackup: %w: %s", err, server.redact(lastLines(out.String(), 4))).
			Hint("the source's user needs the attribute REPLICATION and a line in pg_hba.conf for it")
	}
	if err := giveTo(p.data(), p.UID, p.GID); err != nil {
		return err
	}
	return p.relinkTablespaces()
}

// reaching is where a program of the installation runs that talks to a live
// server: it sees that server's socket, or this machine's network, and no more
// of either.
func (p *preparation) reaching(v Server) cage {
	c := cage{uid: p.Outside, gid: p.Outside, network: true}
	if strings.HasPrefix(v.Host, "/") {
		c.network = false
		c.show = append(c.show, bind{Dir: Dir{Host: v.Host}, readOnly: true})
	}
	for _, dir := range []string{filepath.Dir(p.Install.Bin), p.Install.Share} {
		if !strings.HasPrefix(dir+"/", "/usr/") {
			c.show = append(c.show, bind{Dir: Dir{Host: dir}, readOnly: true})
		}
	}
	return c
}

// outside is a program of the installation that talks to a live server.
func (p *preparation) outside(name string, args ...string) *exec.Cmd {
	path := p.Install.program(name)
	return &exec.Cmd{Path: path, Args: append([]string{path}, args...), Dir: "/tmp"}
}

// tablespacesDir holds what was outside of the source's data directory.
const tablespacesDir = "mayfly_tablespaces"

// relinkTablespaces makes the links of pg_tblspc lead to where the files are,
// relative, so that copies of the directory have their own.
func (p *preparation) relinkTablespaces() error {
	root, err := os.OpenRoot(p.data())
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), "pg_tblspc")
	for _, e := range entries {
		name := "pg_tblspc/" + e.Name()
		if e.Type() != fs.ModeSymlink {
			continue
		}
		err = errors.Join(err, root.Remove(name), root.Symlink("../"+tablespacesDir+"/"+e.Name(), name),
			root.Lchown(name, int(p.UID), int(p.GID)))
		p.note("the tablespace %s is kept inside of the baseline", e.Name())
	}
	return err
}
