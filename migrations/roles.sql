-- Roles with no more rights than the services need, for the schema that comes first in the search
-- path. It is no migration: run it by hand, as the role that owns the tables or will make them.
-- docs/operating/roles.md says how. It may be run again at any time.

DO $$
DECLARE
    place CONSTANT TEXT := current_schema();
    grants CONSTANT TEXT[][] := ARRAY[
        -- The gateway.
        ARRAY['chat_reader', 'SELECT'],
        -- A persister that does not migrate.
        ARRAY['chat_writer', 'SELECT, INSERT, UPDATE, DELETE']
    ];
    role TEXT;
    rights TEXT;
BEGIN
    FOR i IN 1 .. array_length(grants, 1) LOOP
        role := grants[i][1];
        rights := grants[i][2];
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', place, role);
        EXECUTE format('GRANT %s ON ALL TABLES IN SCHEMA %I TO %I', rights, place, role);
        -- How far "Message"."seq" is given: a search begins there.
        EXECUTE format('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO %I', place, role);
        EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT ON SEQUENCES TO %I', place, role);
        -- Tables of later migrations.
        EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT %s ON TABLES TO %I', place, rights, role);
    END LOOP;
    -- Before PostgreSQL 15 everybody may make tables in "public".
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', place);
END
$$;
