#!/bin/sh
# Run by PostgreSQL's image when its volume is new: makes the role that W3bstream reads with. It sees the ordered
# views that Lockstep makes in the schema lockstep_reader, and nothing else of the database.
set -eu

psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --set=writer="$POSTGRES_USER" --set=password="$READER_PASSWORD" \
    --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
CREATE ROLE w3bstream LOGIN PASSWORD :'password';
ALTER ROLE w3bstream SET search_path = lockstep_reader;
CREATE SCHEMA lockstep_reader;
GRANT USAGE ON SCHEMA lockstep_reader TO w3bstream;
-- The views come later, made by the writer.
ALTER DEFAULT PRIVILEGES FOR ROLE :"writer" IN SCHEMA lockstep_reader GRANT SELECT ON TABLES TO w3bstream;
SQL
