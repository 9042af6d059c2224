-- Takes from all roles but the administrator's what reaches beyond the
-- database, and the login: who acts as a role can give it a password, with which
-- others could log in later. Lets the owner act as each of them.
DO $mayfly$
DECLARE
	r record;
	owner name := current_setting('mayfly.owner');
BEGIN
	FOR r IN SELECT * FROM pg_roles WHERE rolname <> 'mayfly' AND rolname !~ '^pg_' ORDER BY rolname LOOP
		IF r.rolsuper OR r.rolcreaterole OR r.rolreplication OR r.rolbypassrls THEN
			RAISE NOTICE 'mayfly: role % is no superuser, makes no roles, does not replicate and keeps to row security', r.rolname;
		END IF;
		EXECUTE format('ALTER ROLE %I NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS NOLOGIN PASSWORD NULL', r.rolname);
		IF r.rolname <> owner AND NOT pg_has_role(r.rolname, owner, 'MEMBER') THEN
			EXECUTE format('GRANT %I TO %I', r.rolname, owner);
		END IF;
	END LOOP;
	FOR r IN SELECT a.rolname AS role, m.rolname AS member FROM pg_auth_members g JOIN pg_roles a ON a.oid = g.roleid JOIN pg_roles m ON m.oid = g.member
		WHERE a.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files', 'pg_create_subscription')
			AND m.rolname !~ '^(pg_|mayfly$)' LOOP
		EXECUTE format('REVOKE %I FROM %I CASCADE', r.role, r.member);
		RAISE NOTICE 'mayfly: role % is no member of %', r.member, r.role;
	END LOOP;
END
$mayfly$
