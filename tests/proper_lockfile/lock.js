// The other party: npm's proper-lockfile, as Claude Code uses it around a refresh.
//
//   node lock.js hold DIR     locks DIR, prints `held`, and releases it when stdin is closed: `released`
//   node lock.js check DIR    prints whether DIR is locked: `true` or `false`
const lockfile = require('proper-lockfile');

const [verb, dir] = process.argv.slice(2);

async function main() {
  if (verb === 'check') {
    console.log(String(await lockfile.check(dir)));
    return;
  }
  const release = await lockfile.lock(dir);
  console.log('held');
  process.stdin.resume();
  process.stdin.on('end', async () => {
    await release();
    console.log('released');
  });
}

main().catch((error) => {
  console.log(error.code);
  process.exitCode = 1;
});
