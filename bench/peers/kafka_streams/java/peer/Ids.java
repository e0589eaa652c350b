package peer;

import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import org.apache.avro.util.Utf8;

/** Decision ids (UUID version 5) and account pseudonyms (HMAC-SHA-256), equal to Weir's. */
final class Ids {
    private static final int CACHED_HALF = 65_536;
    private static final byte[] HEX = "0123456789abcdef".getBytes(StandardCharsets.US_ASCII);

    private final MessageDigest prefixed;
    private final Mac mac;
    private Map<Utf8, byte[]> young = new HashMap<>();
    private Map<Utf8, byte[]> old = new HashMap<>();

    Ids(byte[] namespace, String tenant, String kind, byte[] pseudonymKey) throws GeneralSecurityException {
        prefixed = MessageDigest.getInstance("SHA-1");
        prefixed.update(namespace);
        prefixed.update((tenant + "\0" + kind + "\0").getBytes(StandardCharsets.UTF_8));
        mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(pseudonymKey, "HmacSHA256"));
    }

    /** 16 bytes: the UUID version 5 of tenant, kind and event; the prefix was hashed once. */
    byte[] decisionId(Utf8 eventId) throws CloneNotSupportedException {
        MessageDigest digest = (MessageDigest) prefixed.clone();
        digest.update(eventId.getBytes(), 0, eventId.getByteLength());
        byte[] id = java.util.Arrays.copyOf(digest.digest(), 16);
        id[6] = (byte) (id[6] & 0x0F | 0x50);
        id[8] = (byte) (id[8] & 0x3F | 0x80);
        return id;
    }

    /** The id's usual 36 characters into {@code out}. */
    static void text(byte[] id, byte[] out) {
        int at = 0;
        for (int each = 0; each < id.length; each++) {
            if (each == 4 || each == 6 || each == 8 || each == 10) {
                out[at++] = '-';
            }
            out[at++] = HEX[id[each] >> 4 & 0xF];
            out[at++] = HEX[id[each] & 0xF];
        }
    }

    /** 22 ASCII bytes; the last 65,536 to 131,072 accounts are remembered. */
    byte[] pseudonym(Utf8 accountId) {
        byte[] known = young.get(accountId);
        if (known != null) {
            return known;
        }
        known = old.get(accountId);
        if (known == null) {
            mac.update(accountId.getBytes(), 0, accountId.getByteLength());
            byte[] first = java.util.Arrays.copyOf(mac.doFinal(), 16);
            known = java.util.Arrays.copyOf(Base64.getUrlEncoder().encode(first), 22);
        }
        if (young.size() >= CACHED_HALF) {
            old = young;
            young = new HashMap<>();
        }
        young.put(new Utf8(accountId), known);
        return known;
    }
}
