-- +goose Up

-- +goose StatementBegin
create function decisions_refuse() returns trigger language plpgsql as $$
begin
    raise exception 'the audit log is append-only';
end $$;
-- +goose StatementEnd
create trigger decisions_append_only before update or delete or truncate on decisions
    for each statement execute function decisions_refuse();

-- What is listed in order is in the order of its bytes, whatever the database's.
alter table tokens alter id type text collate "C", alter parent type text collate "C";
alter table revocations alter token type text collate "C";
alter table orgs alter name type text collate "C";
alter table apps alter name type text collate "C";
alter table users alter name type text collate "C";
alter table trusts alter id type text collate "C";
alter table decisions alter id type text collate "C";

-- +goose Down
alter table decisions alter id type text collate "default";
alter table trusts alter id type text collate "default";
alter table users alter name type text collate "default";
alter table apps alter name type text collate "default";
alter table orgs alter name type text collate "default";
alter table revocations alter token type text collate "default";
alter table tokens alter id type text collate "default", alter parent type text collate "default";
drop trigger decisions_append_only on decisions;
drop function decisions_refuse;
