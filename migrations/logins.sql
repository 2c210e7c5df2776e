-- The users that compose.yaml gives to its services, each with a role of roles.sql, which comes first. For
-- psql 15 or newer, as a role that may make others, with the passwords in its environment. It may be run
-- again at any time: the passwords are then those of that time.

\getenv gateway GATEWAY_PASSWORD
\getenv persister PERSISTER_PASSWORD

SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', name, role)
FROM (VALUES ('gateway', 'chat_reader'), ('persister', 'chat_writer')) AS users (name, role)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

ALTER ROLE gateway PASSWORD :'gateway';
ALTER ROLE persister PASSWORD :'persister';
