#!/bin/sh
# The server answers over the network: the official script's --connect --innodb_initialized.
exec mariadb-admin -h 127.0.0.1 -uroot -p"$MARIADB_ROOT_PASSWORD" ping
