package peer;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.SecureRandom;
import javax.crypto.Cipher;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.SecretKeySpec;

/**
 * Seals values as weir/crypto/envelope.py does: a Tink AES-256-GCM ciphertext, a fresh random IV each, tied by
 * its associated data to topic, key, schema and record.
 */
final class Sealer {
    private static final int PREFIX_BYTES = 5;
    private static final int IV_BYTES = 12;
    private static final int TAG_BYTES = 16;
    private static final int IVS = 1024;

    private final byte[] prefix;
    private final byte[] context;
    private final byte[] headerStart;
    private final SecretKeySpec key;
    private final Cipher cipher;
    private final SecureRandom random = new SecureRandom();
    // One call to the system for many IVs, as Weir does for a batch.
    private final byte[] ivs = new byte[IV_BYTES * IVS];
    private int next = IVS;

    Sealer(String topic, byte[] key, int keyId, int schemaId) throws GeneralSecurityException {
        this.prefix = ByteBuffer.allocate(PREFIX_BYTES).put((byte) 1).putInt(keyId).array();
        byte[] head = ("weir.envelope.v1\0" + topic + "\0").getBytes(StandardCharsets.UTF_8);
        this.context = ByteBuffer.allocate(head.length + 8).put(head).putInt(keyId).putInt(schemaId).array();
        this.headerStart = ByteBuffer.allocate(5).put((byte) 1).putInt(schemaId).array();
        this.key = new SecretKeySpec(key, "AES");
        this.cipher = Cipher.getInstance("AES/GCM/NoPadding");
    }

    /** The value on the wire for the first {@code length} bytes of {@code plain}. */
    byte[] seal(byte[] plain, int length, byte[] recordId) throws GeneralSecurityException {
        if (next == IVS) {
            random.nextBytes(ivs);
            next = 0;
        }
        int at = IV_BYTES * next++;
        byte[] out = new byte[PREFIX_BYTES + IV_BYTES + length + TAG_BYTES];
        System.arraycopy(prefix, 0, out, 0, PREFIX_BYTES);
        System.arraycopy(ivs, at, out, PREFIX_BYTES, IV_BYTES);
        cipher.init(Cipher.ENCRYPT_MODE, key, new GCMParameterSpec(8 * TAG_BYTES, ivs, at, IV_BYTES));
        cipher.updateAAD(context);
        cipher.updateAAD(recordId);
        cipher.doFinal(plain, 0, length, out, PREFIX_BYTES + IV_BYTES);
        return out;
    }

    /** The value of the header {@code weir.envelope}. */
    byte[] header(byte[] recordId) {
        byte[] header = new byte[headerStart.length + recordId.length];
        System.arraycopy(headerStart, 0, header, 0, headerStart.length);
        System.arraycopy(recordId, 0, header, headerStart.length, recordId.length);
        return header;
    }
}
