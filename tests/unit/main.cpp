// SPDX-License-Identifier: BSD-3-Clause
//
// Runs the CppUnit suites that are linked into the program.
//
//     PROGRAM            all suites
//     PROGRAM NAME       one suite ("LayoutTest") or one test
//                        ("LayoutTest::refusals")
//
// Prints the name of each test.  Exit status: 0 all passed, 1 some failed,
// 2 no such suite or test.

#include <cppunit/BriefTestProgressListener.h>
#include <cppunit/CompilerOutputter.h>
#include <cppunit/Test.h>
#include <cppunit/TestResult.h>
#include <cppunit/TestResultCollector.h>
#include <cppunit/extensions/TestFactoryRegistry.h>

#include <iostream>
#include <memory>
#include <string>

namespace {

// Fixtures in an unnamed namespace can be given without it.
std::string plain(std::string name) {
  static const std::string prefix = "(anonymous namespace)::";
  const std::size_t at = name.find(prefix);
  return at == std::string::npos ? name : name.erase(at, prefix.size());
}

CppUnit::Test* find(CppUnit::Test* in, const std::string& name) {
  if (plain(in->getName()) == name) return in;
  for (int i = 0; i < in->getChildTestCount(); ++i)
    if (CppUnit::Test* const found = find(in->getChildTestAt(i), name))
      return found;
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  const std::unique_ptr<CppUnit::Test> all(
      CppUnit::TestFactoryRegistry::getRegistry().makeTest());
  CppUnit::Test* const chosen = argc > 1 ? find(all.get(), argv[1]) : all.get();
  if (argc > 2 || chosen == nullptr) {
    std::cerr << argv[0] << ": no such suite or test\n";
    return 2;
  }
  CppUnit::TestResult events;
  CppUnit::TestResultCollector results;
  CppUnit::BriefTestProgressListener progress;
  events.addListener(&results);
  events.addListener(&progress);
  chosen->run(&events);
  CppUnit::CompilerOutputter(&results, std::cerr).write();
  // A program without tests has shown nothing.
  return results.wasSuccessful() && results.runTests() > 0 ? 0 : 1;
}
