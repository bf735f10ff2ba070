// node make-bundle.mjs MANIFEST BUNDLE PUBLIC-KEY [message]: signs as `cosign sign --key` of version 3 does.
import { DSSEBundleBuilder, MessageSignatureBundleBuilder } from '@sigstore/sign';
import { bundleToJSON } from '@sigstore/bundle';
import { createHash, generateKeyPairSync, sign } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
const [manifest, out, pub, kind] = process.argv.slice(2);
const bytes = readFileSync(manifest);
const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
const pem = publicKey.export({ format: 'pem', type: 'spki' });
const hint = createHash('sha256').update(publicKey.export({ format: 'der', type: 'spki' })).digest('base64');
const signer = { sign: async (data) => ({
  signature: sign('sha256', data, privateKey), key: { $case: 'publicKey', publicKey: pem, hint } }) };
const statement = { _type: 'https://in-toto.io/Statement/v1',
  subject: [{ digest: { sha256: createHash('sha256').update(bytes).digest('hex') } }],
  predicateType: 'https://sigstore.dev/cosign/sign/v1', predicate: {} };
const bundle = kind === 'message'
  ? await new MessageSignatureBundleBuilder({ signer, witnesses: [] }).create({ data: bytes })
  : await new DSSEBundleBuilder({ signer, witnesses: [] }).create(
      { data: Buffer.from(JSON.stringify(statement)), type: 'application/vnd.in-toto+json' });
writeFileSync(out, JSON.stringify(bundleToJSON(bundle)));
writeFileSync(pub, pem);
