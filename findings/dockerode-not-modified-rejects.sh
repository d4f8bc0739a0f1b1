#!/usr/bin/env bash
# Package:   dockerode 5.0.1 (npm), the client of testcontainers and dev containers for Node.js
# Behaviour: 304 Not Modified is the API's answer for a start of a container that runs and a stop of one that does not;
#            the docker CLI takes it as success. dockerode rejects the promise, so a second stop() is an exception. The
#            message of start and stop names the reason; that of other calls is "unexpected".
# Seen:      start: rejected 304 (HTTP code 304) container already started -
#            stop: rejected 304 (HTTP code 304) container already stopped -
#            restart: rejected 304 (HTTP code 304) unexpected -
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf '{"name":"finding","private":true,"dependencies":{"dockerode":"5.0.1"}}\n' >package.json
npm install --no-audit --no-fund --ignore-scripts --silent >/dev/null 2>&1
cat >main.js <<'JS'
const http = require('http'), Docker = require('dockerode');
const server = http.createServer((req, res) => { res.writeHead(304); res.end(); });
server.listen(0, '127.0.0.1', async () => {
  const c = new Docker({ host: '127.0.0.1', port: server.address().port }).getContainer('x');
  for (const call of ['start', 'stop', 'restart']) {
    try {
      await c[call]();
      console.log(`${call}: resolved`);
    } catch (e) {
      console.log(`${call}: rejected ${e.statusCode} ${e.message.trim()}`);
    }
  }
  server.close();
});
JS
timeout 60 node main.js >got
cat got
diff - got <<'WANT'
start: rejected 304 (HTTP code 304) container already started -
stop: rejected 304 (HTTP code 304) container already stopped -
restart: rejected 304 (HTTP code 304) unexpected -
WANT
