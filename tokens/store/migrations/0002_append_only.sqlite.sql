-- +goose Up

-- +goose StatementBegin
create trigger decisions_update before update on decisions begin
    select raise(abort, 'the audit log is append-only');
end;
-- +goose StatementEnd

-- +goose StatementBegin
create trigger decisions_delete before delete on decisions begin
    select raise(abort, 'the audit log is append-only');
end;
-- +goose StatementEnd

-- "insert or replace" would delete without the trigger above.
-- +goose StatementBegin
create trigger decisions_replace before insert on decisions when exists (select 1 from decisions where id = new.id) begin
    select raise(ignore);
end;
-- +goose StatementEnd

-- +goose Down
drop trigger decisions_replace;
drop trigger decisions_delete;
drop trigger decisions_update;
