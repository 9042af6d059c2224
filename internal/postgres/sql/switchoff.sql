-- Switches off what would act by itself in a copy of the database, or reach
-- out of it. Each thing is told in a notice.
DO $mayfly$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT srvname, COALESCE(usename, 'public') AS usename FROM pg_user_mappings LOOP
		EXECUTE format('DROP USER MAPPING FOR %s SERVER %I', CASE r.usename WHEN 'public' THEN 'PUBLIC' ELSE quote_ident(r.usename) END, r.srvname);
		RAISE NOTICE 'mayfly: foreign server % is switched off: its user mapping for % is not in the baseline', r.srvname, r.usename;
	END LOOP;
	FOR r IN SELECT srvname, a.grantee FROM pg_foreign_server, aclexplode(srvacl) a WHERE a.grantee <> srvowner LOOP
		EXECUTE format('REVOKE ALL ON FOREIGN SERVER %I FROM %s CASCADE', r.srvname, CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE r.grantee::regrole::text END);
	END LOOP;
	FOR r IN SELECT evtname, evtenabled FROM pg_event_trigger WHERE evtenabled IN ('A', 'R') LOOP
		EXECUTE format('ALTER EVENT TRIGGER %I %s', r.evtname, CASE r.evtenabled WHEN 'A' THEN 'ENABLE' ELSE 'DISABLE' END);
		RAISE NOTICE 'mayfly: event trigger % does not fire in sessions that replicate', r.evtname;
	END LOOP;
	IF to_regclass('cron.job') IS NOT NULL THEN
		EXECUTE 'UPDATE cron.job SET active = false';
		RAISE NOTICE 'mayfly: the jobs of pg_cron are switched off';
	END IF;
	FOR r IN SELECT oid::regclass AS name FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r' ORDER BY 1 LOOP
		RAISE NOTICE 'mayfly: table % is unlogged: it is empty after every rollback and fork', r.name;
	END LOOP;
END
$mayfly$
