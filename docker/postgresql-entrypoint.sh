#!/bin/sh
# Starts PostgreSQL: makes the cluster in $PGDATA at the first start, and at every start the roles of $POSTGRESQL_ROLES. Each file of that folder
# names a role that owns a database of the same name, and holds its password, so a volume goes on with a new password. Arguments go to `postgres`.
set -eu
umask 0077
: "${PGDATA:=/var/lib/postgresql/data/pgdata}" "${POSTGRESQL_ROLES:=/etc/postgresql-roles}" "${POSTGRESQL_SOCKET:=/var/run/postgresql}"

# Held until postgres ends. Its own lock file compares process ids, and those are the same in every container.
exec 9> "$PGDATA.lock"
flock --nonblock 9 || { echo "another server uses $PGDATA" >&2; exit 1; }
rm -f "$PGDATA/postmaster.pid"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  rm -rf "$PGDATA.new"
  # Whoever is inside this container is the administrator; from outside only roles with passwords come in.
  initdb --pgdata="$PGDATA.new" --username=postgres --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
  echo "host all all all scram-sha-256" >> "$PGDATA.new/pg_hba.conf"
  mv "$PGDATA.new" "$PGDATA" # a start that was cut off leaves nothing half done
fi

pg_ctl start --pgdata="$PGDATA" --silent --wait --timeout=600 --options="-c listen_addresses='' -k $POSTGRESQL_SOCKET"
for file in "$POSTGRESQL_ROLES"/*; do
  [ -f "$file" ] || continue
  # psql reads the password itself: it is in no argument and no log.
  psql --quiet --no-psqlrc --host="$POSTGRESQL_SOCKET" --username=postgres --dbname=postgres \
    --set=ON_ERROR_STOP=1 --set=role="$(basename "$file")" --set=file="$file" <<'SQL'
\set password `cat :'file'`
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SELECT format('CREATE ROLE %I LOGIN', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
SELECT format('ALTER ROLE %I PASSWORD %L', :'role', :'password') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'role', :'role') WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'role') \gexec
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', :'role') \gexec
SQL
done
pg_ctl stop --pgdata="$PGDATA" --silent --mode=fast --wait
exec postgres -k "$POSTGRESQL_SOCKET" "$@"
