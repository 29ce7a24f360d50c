// A slipwayd of its own for the tests, a proxy in front of it that can cut
// every connection, and the client.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";

const bin = process.env.SLIPWAY_BIN;

async function freePort() {
  const s = net.createServer().listen(0, "127.0.0.1");
  await once(s, "listening");
  const { port } = s.address();
  s.close();
  await once(s, "close");
  return port;
}

export async function start() {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), "swb-"));
  const grpc = `127.0.0.1:${await freePort()}`;
  const http = `127.0.0.1:${await freePort()}`;
  const args = ["--root", path.join(root, "r"), "--grpc", grpc, "--http", http];
  const child = spawn(path.join(bin, "slipwayd"), args, { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  await new Promise((ready, failed) => {
    child.stderr.setEncoding("utf8").on("data", (text) => {
      log += text;
      if (log.includes("slipwayd is ready")) ready();
    });
    child.on("exit", (code) => failed(new Error(`slipwayd ended with ${code}:\n${log}`)));
  });
  const token = fs.readFileSync(path.join(root, "r", "admin.token"), "utf8").trim();
  const proxy = await startProxy(http);
  return {
    url: proxy.url,
    token,
    cut: proxy.cut,
    slipway: client(grpc, root, token),
    // app makes a directory to deploy, whose RUN step runs a script.
    app(name, script) {
      const dir = path.join(root, name);
      fs.mkdirSync(dir, { recursive: true });
      fs.copyFileSync(process.env.BUSYBOX, path.join(dir, "busybox"));
      fs.chmodSync(path.join(dir, "busybox"), 0o755);
      fs.writeFileSync(path.join(dir, "script"), script);
      fs.writeFileSync(
        path.join(dir, "Dockerfile"),
        "FROM scratch\nCOPY busybox /bin/busybox\nCOPY script /script\n" + 'RUN ["/bin/busybox", "sh", "/script"]\n',
      );
      return dir;
    },
    async stop() {
      proxy.close();
      child.removeAllListeners("exit");
      child.kill("SIGTERM");
      if (child.exitCode === null) await once(child, "exit");
      fs.rmSync(root, { recursive: true, force: true });
    },
  };
}

// client returns a function that runs slipway and returns what it prints.
function client(grpc, root, admin) {
  return async (args, { token = admin, fails = false } = {}) => {
    const env = { PATH: process.env.PATH, HOME: root, SLIPWAY_ADDR: grpc, SLIPWAY_API_TOKEN: token };
    try {
      const { stdout } = await promisify(execFile)(path.join(bin, "slipway"), args, { env, maxBuffer: 16 << 20 });
      return stdout;
    } catch (err) {
      if (fails) return err.stdout + err.stderr;
      throw err;
    }
  };
}

async function startProxy(to) {
  const [host, port] = to.split(":");
  const open = new Set();
  const server = net.createServer((from) => {
    const there = net.connect(Number(port), host);
    for (const s of [from, there]) {
      open.add(s);
      s.on("error", () => {});
      s.on("close", () => {
        open.delete(s);
        from.destroy();
        there.destroy();
      });
    }
    from.pipe(there).pipe(from);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = () => open.forEach((s) => s.destroy());
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    cut,
    close() {
      server.close();
      cut();
    },
  };
}
