-- What is needed so that the offsets are never taken for those of another log, so that no record can
-- stop its partition, and so that a session that was deleted stays deleted. An older persister goes on
-- working beside it.

-- The newest record of the stream that was known when the offset moved. The record at the offset may
-- be another partition's, or may be gone with an erased session: this one tells the log all the same.
ALTER TABLE "LogPartition" ADD COLUMN "headSequence" BIGINT, ADD COLUMN "headRecordedAt" TIMESTAMPTZ;
COMMENT ON COLUMN "LogPartition"."headSequence" IS
    'Stream sequence of the newest record that was known when the offset moved';
COMMENT ON COLUMN "LogPartition"."headRecordedAt" IS 'Timestamp of that record, to know the log again';

-- Entries of a B-tree are limited in size, and the subject of a foreign record is as long as NATS takes
-- it: a hash of it always fits.
DROP INDEX "DeadLetter_session_idx";
CREATE INDEX "DeadLetter_session_idx" ON "DeadLetter" USING hash (split_part("subject", '.', 4));

-- A session that is deleted by SQL or by a Prisma client is remembered like one that was erased by a
-- record in the log, or its next message would open it again. The digest is that of the id in the
-- subject of its records: the "sessionId" itself where it is a UUID version 4, else an id that stands
-- for it (`SessionId::standing_for` of the services).
--
-- It runs with the rights of whoever migrates: a Prisma client need not have any on "ErasedSession".
-- TRUNCATE does not come here: it empties tables, and says nothing about anybody's session.
DO $$
DECLARE
    place CONSTANT TEXT := current_schema();
BEGIN
    EXECUTE format($body$
        CREATE FUNCTION %1$I."remember_deleted_session"() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $trigger$
        DECLARE
            hash BYTEA;
            id TEXT := OLD."sessionId";
        BEGIN
            IF id !~ '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' THEN
                hash := substring(sha256(convert_to(id, 'UTF8')) FOR 16);
                hash := set_byte(hash, 6, (get_byte(hash, 6) & 15) | 64);
                hash := set_byte(hash, 8, (get_byte(hash, 8) & 63) | 128);
                id := encode(hash, 'hex')::uuid::text;
            END IF;
            -- Epoch 0 is no partition's: this end has no place in the log.
            INSERT INTO %1$I."ErasedSession"
                ("digest", "logEpoch", "erasedSequence", "lastSequence", "erasedAt")
            VALUES (sha256(convert_to(id, 'UTF8')), 0, 0, 0, now())
            ON CONFLICT ("digest") DO NOTHING;
            RETURN NULL;
        END
        $trigger$
    $body$, place);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %I."remember_deleted_session"() FROM PUBLIC', place);
    EXECUTE format(
        'CREATE TRIGGER "ChatSession_deleted" AFTER DELETE ON %1$I."ChatSession"
         FOR EACH ROW EXECUTE FUNCTION %1$I."remember_deleted_session"()', place);
END
$$;
