package peer;

import java.io.IOException;
import java.nio.ByteBuffer;
import org.apache.avro.Schema;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.util.Utf8;

/**
 * One payment, read field by field with Avro's own decoder, as its generated classes do; reused for the next.
 */
final class Payment {
    private static final String LAYOUT =
            "event_id:STRING account_id:STRING terminal_id:STRING amount:BYTES currency:STRING event_time:LONG "
                    + "channel:ENUM merchant_category:UNION country:UNION counterparty_id:UNION";
    private static final int HEADER_BYTES = 5;

    Utf8 eventId = new Utf8();
    Utf8 accountId = new Utf8();
    Utf8 terminalId = new Utf8();
    Utf8 currency = new Utf8();
    long amount; // 1/10000 of the payment's own currency
    long eventMs;
    int channel;
    int counterpartyBytes;

    private final int schemaId;
    private BinaryDecoder decoder;
    private ByteBuffer amountBytes = ByteBuffer.allocate(16);

    /** A reader of records of this schema, which must have the fields that it reads. */
    Payment(Schema schema, int schemaId) {
        this.schemaId = schemaId;
        StringBuilder found = new StringBuilder();
        for (Schema.Field field : schema.getFields()) {
            found.append(found.isEmpty() ? "" : " ").append(field.name()).append(':').append(field.schema().getType());
        }
        if (!LAYOUT.contentEquals(found)) {
            throw new IllegalArgumentException("the transaction schema has other fields: " + found);
        }
    }

    /** False when the value is not framed as a record of this schema. */
    boolean read(byte[] value) throws IOException {
        if (value == null || value.length < HEADER_BYTES || value[0] != 0) {
            return false;
        }
        int id = ByteBuffer.wrap(value, 1, 4).getInt();
        if (id != schemaId) {
            return false;
        }
        decoder = DecoderFactory.get().binaryDecoder(value, HEADER_BYTES, value.length - HEADER_BYTES, decoder);
        eventId = decoder.readString(eventId);
        accountId = decoder.readString(accountId);
        terminalId = decoder.readString(terminalId);
        amountBytes = decoder.readBytes(amountBytes);
        amount = unscaled(amountBytes);
        currency = decoder.readString(currency);
        eventMs = decoder.readLong();
        channel = decoder.readEnum();
        skipText();
        skipText();
        counterpartyBytes = skipText();
        return true;
    }

    private int skipText() throws IOException {
        if (decoder.readIndex() == 0) {
            decoder.readNull();
            return 0;
        }
        int length = decoder.readInt();
        decoder.skipFixed(length);
        return length;
    }

    private static long unscaled(ByteBuffer bytes) {
        int length = bytes.remaining();
        if (length == 0 || length > 8) {
            throw new IllegalArgumentException("an amount of " + length + " bytes");
        }
        long value = bytes.get(bytes.position());
        for (int each = 1; each < length; each++) {
            value = value << 8 | bytes.get(bytes.position() + each) & 0xFF;
        }
        return value;
    }
}
